"""How `overhead.py` sets CoMMIT's trainers beside the trainers that they are made of: pairs of short runs."""

import copy
import gc
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from datasets import Dataset
from overhead_subjects import Subject, was_measured
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from commit_lab.nano.models.load import load_nano
from commit_lab.nano.pictures.nano_questions import make_question
from commit_tuning.integrations.transformers import CoMMITTrainer
from commit_tuning.integrations.trl import CoMMITSFTTrainer

CHAT = """{% for m in messages %}{% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }}
{% endfor %}{% endfor %}"""
QUIET = {
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "logging_steps": 10,
    "learning_rate": 3e-4,
    "use_cpu": True,
}
Steps = list[list[Any]]


class _Times(TrainerCallback):
    """Processor seconds from the end of a step to the end of the next: loading, training, measuring, logging."""

    def __init__(self) -> None:
        self.steps: Steps = []
        self.trainer: Any = None
        self._since = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        moment = time.process_time()
        coordinator = getattr(self.trainer, "coordinator", None)
        if state.global_step > 1:
            self.steps.append([round(moment - self._since, 6), bool(coordinator) and was_measured(coordinator)])
        self._since = time.process_time()


def pairs_of(make: Callable[[bool, str], Any], pairs: int) -> list[dict[str, Steps]]:
    """Short runs of the plain trainer and of ours, in turn, the other one first every second time."""
    found = []
    for number in range(pairs):
        runs = {"plain": False, "ours": True}
        names = list(runs)[:: -1 if number % 2 else 1]
        found.append({name: _run(make, runs[name]) for name in names})
    return found


def _run(make: Callable[[bool, str], Any], ours: bool) -> Steps:
    times = _Times()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times.trainer = trainer = make(ours, folder)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(times)
        gc.collect()
        trainer.train()
    return times.steps


def trainer_of(subject: Subject, steps: int) -> Callable[[bool, str], Any]:
    """Makes transformers' `Trainer`, or ours, for a model and its batches."""
    return partial(_trainer, subject, steps)


def _trainer(subject: Subject, steps: int, ours: bool, folder: str) -> Any:
    size, batches = len(subject.batches[0]["labels"]), subject.batches
    arguments = TrainingArguments(folder, max_steps=steps, per_device_train_batch_size=size, **QUIET)
    rows = Dataset.from_list([{"number": number} for number in range(size * steps)])
    collate = lambda items: dict(batches[items[0]["number"] % len(batches)])  # noqa: E731
    arguments.remove_unused_columns = False
    kind = CoMMITTrainer if ours else Trainer
    return kind(model=copy.deepcopy(subject.model), args=arguments, train_dataset=rows, data_collator=collate)


def sft_trainer(steps: int) -> Callable[[bool, str], Any]:
    """Makes TRL's `SFTTrainer`, or ours, for nano LLaVA and conversations about pictures."""
    return partial(_sft_trainer, Dataset.from_list([_conversation(number) for number in range(8 * steps)]), steps)


def _sft_trainer(rows: Dataset, steps: int, ours: bool, folder: str) -> Any:
    model, processor = load_nano("nano-llava-v2")
    processor.chat_template = CHAT
    arguments = SFTConfig(folder, max_steps=steps, per_device_train_batch_size=8, max_length=None, bf16=False, **QUIET)
    kind = CoMMITSFTTrainer if ours else SFTTrainer
    return kind(model=model, args=arguments, train_dataset=rows, processing_class=processor)


def _conversation(number: int) -> dict[str, object]:
    question = make_question(0, "train", number)
    asked = [{"type": "image"}, {"type": "text", "text": f"{question.question} Answer:"}]
    answer = [{"type": "text", "text": question.choices[question.answer] if question.choices else str(question.answer)}]
    return {
        "prompt": [{"role": "user", "content": asked}],
        "completion": [{"role": "assistant", "content": answer}],
        "images": [question.picture],
    }

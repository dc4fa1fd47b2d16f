"""Vision SFT with TRL. Two lines make it CoMMIT: the import of the trainer and its name.

pip install '.[train,trl]' ./lab
python examples/trl_sft.py --output runs/trl --steps 20
"""

import argparse

import torch
from datasets import Dataset
from trl import SFTConfig

from commit_lab.nano.models.load import load_nano
from commit_lab.nano.pictures.nano_questions import make_question
from commit_tuning.integrations.trl import CoMMITSFTTrainer  # instead of: from trl import SFTTrainer

CHAT = """{% for m in messages %}{% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }}
{% endfor %}{% endfor %}"""


def conversation(number: int) -> dict[str, object]:
    """One question about real icons, as TRL's vision datasets have them."""
    question = make_question(0, "train", number)
    asked = [{"type": "image"}, {"type": "text", "text": f"{question.question} Answer:"}]
    answer = [{"type": "text", "text": question.choices[question.answer] if question.choices else str(question.answer)}]
    return {
        "prompt": [{"role": "user", "content": asked}],
        "completion": [{"role": "assistant", "content": answer}],
        "images": [question.picture],
    }


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/trl")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    model, processor = load_nano("nano-llava-v2")  # or from_pretrained of any vision-language model
    processor.chat_template = CHAT
    trainer = CoMMITSFTTrainer(  # instead of: SFTTrainer(
        model=model,
        processing_class=processor,
        train_dataset=Dataset.from_list([conversation(number) for number in range(8 * arguments.steps)]),
        args=SFTConfig(
            output_dir=arguments.output,
            max_steps=arguments.steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            logging_steps=5,
            max_length=None,
            bf16=torch.cuda.is_available(),
            report_to="none",
        ),
    )
    trainer.train()


if __name__ == "__main__":
    main()

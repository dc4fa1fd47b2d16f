"""Whether measuring works with what needs a GPU: 8-bit optimizers, QLoRA, a loss scaler in fp16. Two minutes."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from overhead_subjects import Batch, random_llava

from commit_tuning import CoMMITConfig, Coordinator, partition_model
from commit_tuning.config import Probe

STEPS, RATE = 6, 1e-3
EVERY = CoMMITConfig(probe=Probe(interval=1))


def smoke(device: str) -> dict[str, str]:
    """Each check to "passed", or to what went wrong."""
    checks: dict[str, Callable[[str], None]] = {
        "8-bit AdamW": eight_bit_optimizer, "QLoRA in four bits": qlora, "fp16 with a loss scaler": fp16
    }  # fmt: skip
    found = {}
    for name, check in checks.items():
        try:
            check(device)
            found[name] = "passed"
        except Exception as error:  # whatever it is, it stands in the table
            found[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return found


def eight_bit_optimizer(device: str) -> None:
    """Train with bitsandbytes' AdamW."""
    from bitsandbytes.optim import AdamW8bit

    subject = random_llava(4096, device)
    groups = partition_model(subject.model).param_groups(lr=RATE)
    _train(subject.model, AdamW8bit(groups), subject.batches)


def qlora(device: str) -> None:
    """Train adapters on a language model in four bits."""
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

    subject = random_llava(4096, device, rank=None)
    with tempfile.TemporaryDirectory() as folder:
        subject.model.save_pretrained(folder)
        four_bits = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["vision_tower", "multi_modal_projector", "lm_head"],
        )  # fmt: skip
        model = LlavaForConditionalGeneration.from_pretrained(folder, quantization_config=four_bits, device_map=device)
    adapters = LoraConfig(
        target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=["multi_modal_projector"]
    )
    model = get_peft_model(model, adapters)
    with torch.autocast(device, torch.bfloat16):
        _train(model, torch.optim.AdamW(partition_model(model).param_groups(lr=RATE)), subject.batches)


def fp16(device: str) -> None:
    """Train under autocast in float16, where the first steps overflow and are skipped."""
    subject = random_llava(4096, device)
    optimizer = torch.optim.AdamW(partition_model(subject.model).param_groups(lr=RATE))
    scaler = torch.amp.GradScaler(device, init_scale=2.0**40)
    coordinator = Coordinator(subject.model, optimizer, EVERY)
    subject.model.train()
    skipped = 0
    for number in range(40):
        batch = subject.batches[number % len(subject.batches)]
        with torch.autocast(device, torch.float16):
            loss = subject.model(**batch).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        before = scaler.get_scale()
        with torch.autocast(device, torch.float16):
            coordinator.before_step(batch)
            scaler.step(optimizer)
            scaler.update()
            overflowed = scaler.get_scale() < before
            coordinator.after_step(skipped=overflowed)
        skipped += overflowed
        optimizer.zero_grad()
    _check(coordinator)
    if not 0 < skipped < 40:
        raise AssertionError(f"{skipped} of 40 steps overflowed")


def _train(model: Any, optimizer: Any, batches: list[Batch]) -> None:
    coordinator = Coordinator(model, optimizer, EVERY)
    model.train()
    for number in range(STEPS):
        batch = batches[number % len(batches)]
        model(**batch).loss.backward()
        coordinator.step(batch)
        optimizer.zero_grad()
    _check(coordinator)


def _check(coordinator: Coordinator) -> None:
    """Make sure that kappa was measured.

    Raises:
        AssertionError: It was not.
    """
    if not 0 < coordinator.kappa < float("inf"):
        raise AssertionError(f"kappa is {coordinator.kappa}")

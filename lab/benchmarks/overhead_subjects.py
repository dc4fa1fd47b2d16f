"""What `overhead.py` trains: nano models on their questions, and LLaVAs of any size on random pictures and tokens."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from commit_lab.reproduce.paper_models import find_paper_model
from commit_lab.small.models import SMALL_FOLDER
from commit_tuning import CoMMITConfig, Coordinator, partition_model
from commit_tuning.errors import UserError
from commit_tuning.train.dataset import data_order, ensure_data, open_split
from commit_tuning.train.model_setup import build_model, checkpoint_gradients, prepare
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import Lora, Model
from commit_tuning.train.training import clip_gradients

PLACEHOLDER = 3
MAX_GRAD_NORM = 1.0
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """What is trained.

    Attributes:
        title: For a table.
        model: With trainable parameters.
        batches: Taken in turn.
        rate: Base learning rate.
        autocast: Number format of the forward pass; None for that of the weights.
        projector: Whose the projector is, as for `partition_model`.
        prepared: What is done to a model before it is trained, such as `torch.compile`.
    """

    title: str
    model: Any
    batches: list[Batch]
    rate: float = 3e-4
    autocast: torch.dtype | None = None
    projector: Any = "encoder"
    prepared: Callable[[Any], Any] = field(default=lambda model: model)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def facts(self) -> dict[str, Any]:
        """The sizes that a cost depends on."""
        batch = self.batches[0]
        text = self.model.config.get_text_config()
        partition = self._partition(self.model)
        trained = {name: sum(p.numel() for p in partition[name]) for name in partition}
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trained": trained,
            "vocabulary": int(text.vocab_size),
            "batch": len(batch["labels"]),
            "length": int(batch["labels"].shape[1]),
            "answers": int((batch["labels"][:, 1:] != -100).sum()),
            "autocast": str(self.autocast or "").removeprefix("torch."),
        }

    def _partition(self, model: nn.Module) -> Any:
        return partition_model(model, projector=self.projector)

    def running(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()

    def loop(self, config: CoMMITConfig | None) -> "Loop":
        """A training of its own of a copy, which shares what is not trained."""
        shared = {id(p): p for p in self.model.parameters() if not p.requires_grad}
        return Loop(self, copy.deepcopy(self.model, shared), config)


class Loop:
    """A plain training loop, with a coordinator in it or without.

    Args:
        subject: What is trained.
        model: The model or a copy of it.
        config: Of the coordinator; None trains without one.
    """

    def __init__(self, subject: Subject, model: Any, config: CoMMITConfig | None) -> None:
        self._subject = subject
        model = subject.prepared(model).train()
        partition = subject._partition(model)
        self._parameters = [p for name in partition for p in partition[name]]
        optimizer = torch.optim.AdamW(partition.param_groups(lr=subject.rate), weight_decay=0.0)
        self._optimizer = optimizer
        self.coordinator = Coordinator(model, optimizer, config, partition) if config else None
        self._model = model
        self._count = 0

    def step(self) -> None:
        """Train on the next batch."""
        batch = self._subject.batches[self._count % len(self._subject.batches)]
        self._count += 1
        with self._subject.running():
            loss = self._model(**batch).loss
        loss.backward()
        clip_gradients(self._parameters, MAX_GRAD_NORM)
        if self.coordinator is None:
            self._optimizer.step()
        else:
            with self._subject.running():
                self.coordinator.step(batch)
        self._optimizer.zero_grad()

    @property
    def measured(self) -> bool:
        """Whether the last step was measured."""
        return self.coordinator is not None and was_measured(self.coordinator)


def was_measured(coordinator: Coordinator) -> bool:
    """Whether a coordinator measured its last step."""
    told = coordinator.metrics().items()
    return any(value is not None for name, value in told if name.startswith("drift_scale/"))


def nano(name: str, device: str, batches: int = 64) -> Subject:
    """A nano model with its recipe, on questions about icons.

    Args:
        name: `nano-llava` or `nano-blip2`.
        device: Where it trains.
        batches: Different ones.
    """
    recipe = load_recipe(name)
    model, _ = build_model(recipe.model, device)
    questions = open_split(ensure_data(recipe.data), recipe.data, "train", recipe.model.name, device)
    order = islice(data_order(len(questions), recipe.train.batch_size, 0), batches)
    taken = [questions.training(indices) for indices in order]
    return Subject(recipe.model.name, model, taken, max(recipe.train.rates.values()))


def random_llava(
    vocabulary: int,
    device: str = "cpu",
    *,
    width: int = 128,
    layers: int = 4,
    batch: int = 8,
    text: int = 16,
    answers: int = 6,
    rank: int | None = 8,
    projector: str = "encoder",
) -> Subject:
    """A LLaVA of random weights: 16 patches, a text of so many tokens, of which the last ones are the answer.

    Args:
        vocabulary: Its size.
        device: Where it trains.
        width: Of the language model.
        layers: Of the language model; the tower has four of half the width.
        batch: Samples.
        text: Tokens of prompt and answer.
        answers: Tokens of the answer.
        rank: Of LoRA on queries and values; None tunes the language model in full.
        projector: As for `Subject`.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    side, heads = 56, max(1, width // 64)
    vision = CLIPVisionConfig(
        hidden_size=width // 2, intermediate_size=2 * width, num_hidden_layers=4, num_attention_heads=heads,
        image_size=side, patch_size=14, projection_dim=width // 2,
    )  # fmt: skip
    decoder = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=1024,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=decoder, image_token_index=PLACEHOLDER, image_seq_length=16)
    )
    model = _tuned(model, rank, ("q_proj", "v_proj")).to(device)
    batches = _random_batches(device, vocabulary, batch, 16, text, answers, side)
    return Subject(_title(vocabulary), model, batches, projector=projector)


def _title(vocabulary: int) -> str:
    return f"LLaVA, vocabulary of {vocabulary:,}"


def _tuned(model: Any, rank: int | None, targets: Any) -> Any:
    """Tune the encoder in full, but not its last layer, which LLaVA does not use; LoRA on the language model."""
    lora = None if rank is None else Lora(r=rank, alpha=2.0 * rank, target_modules=targets)
    model = prepare(model, Model(name="random", lora=lora))
    layers = model.config.vision_config.num_hidden_layers
    for name, parameter in model.named_parameters():
        last = f".encoder.layers.{layers - 1}." in name or "post_layernorm" in name
        if "vision_tower" in name and last:
            parameter.requires_grad_(False)
    return model


def _random_batches(  # noqa: PLR0917 - sizes
    device: str, vocabulary: int, batch: int, patches: int, text: int, answers: int, side: int, count: int = 4
) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        ids = torch.randint(PLACEHOLDER + 1, vocabulary, (batch, text), generator=generator)
        ids = torch.cat([torch.full((batch, patches), PLACEHOLDER), ids], dim=1)
        labels = ids.clone()
        labels[:, :-answers] = -100
        pixels = torch.randn(batch, 3, side, side, generator=generator)
        made = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}
        found.append({name: value.to(device) for name, value in made.items()})
    return found


def small_llava(device: str, folder: Path = SMALL_FOLDER / "small-llava", batch: int = 4) -> Subject:
    """DINOv2-small and SmolLM2-135M as a LLaVA, on the questions about icons.

    Raises:
        UserError: It was not assembled.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not there; make it with: python lab/pretraining/assemble_small.py small-llava")
    recipe = load_recipe("small-llava", [f"model.name={folder}", "model.dtype=float32"])
    model, _ = build_model(recipe.model, device)
    questions = open_split(ensure_data(recipe.data), recipe.data, "train", str(folder), device)
    order = islice(data_order(len(questions), batch, 0), 4)
    taken = [questions.training(indices) for indices in order]
    return Subject("small LLaVA (DINOv2-small, SmolLM2-135M)", model, taken, recipe.train.learning_rate)


def llava_7b(device: str, narrow: bool = False, batch: int = 4) -> Subject:
    """LLaVA-1.5-7B by its published sizes, random weights in bfloat16; LoRA, and the projector in full.

    Args:
        device: Where the weights are made; nothing of this size is ever on the CPU.
        narrow: A width of 32 instead, to try the script out.
        batch: Samples.
    """
    paper = find_paper_model("llava-hf/llava-1.5-7b-hf")
    model = paper.build(narrow)
    for parameter in model.parameters():  # and not the buffers, such as angles
        parameter.data = parameter.data.to(torch.bfloat16)
    if not narrow:
        model = model.to_empty(device=device)
        model.init_weights()
    model = _tuned(model, 16, ("q_proj", "v_proj"))
    for name, parameter in model.named_parameters():
        if "vision_tower" in name:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model = model.to(device)
    config, generator = model.config, torch.Generator().manual_seed(0)
    vision = config.vision_config
    patches, text = (vision.image_size // vision.patch_size) ** 2, 64 if not narrow else 8
    ids = torch.randint(4, min(config.text_config.vocab_size, 32000) - 4, (batch, text), generator=generator)
    ids = torch.cat([torch.full((batch, patches), config.image_token_index), ids], dim=1)
    labels = ids.clone()
    labels[:, : -text // 2] = -100
    pixels = torch.randn(batch, 3, vision.image_size, vision.image_size, generator=generator)
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}
    taken = [{name: value.to(device) for name, value in made.items()}]
    return Subject("LLaVA-1.5-7B, LoRA, bfloat16", model, taken, 1e-4, torch.bfloat16)


def in_bfloat16(subject: Subject) -> Subject:
    """The same under autocast."""
    return replace(subject, title=f"{subject.title}, bfloat16 autocast", autocast=torch.bfloat16)


def checkpointed(subject: Subject) -> Subject:
    """The same with gradient checkpointing."""
    checkpoint_gradients(subject.model)
    return replace(subject, title=f"{subject.title}, gradient checkpointing")


def compiled(subject: Subject) -> Subject:
    """The same under torch.compile."""
    return replace(subject, title=f"{subject.title}, torch.compile", prepared=torch.compile)


SHAPES: dict[str, Callable[[str], Subject]] = {
    "nano-llava-v2": partial(nano, "nano-llava"),
    "nano-blip2-v2": partial(nano, "nano-blip2"),
    "llava-49k": lambda device: random_llava(49_152, device),
    "llava-128k": lambda device: random_llava(131_072, device),
    "llava-256k": lambda device: random_llava(262_144, device),
    "small-llava": small_llava,
    "nano-llava-v2-bfloat16": lambda device: in_bfloat16(nano("nano-llava", device)),
    "llava-49k-bfloat16": lambda device: in_bfloat16(random_llava(49_152, device)),
    "nano-llava-v2-checkpointed": lambda device: checkpointed(nano("nano-llava", device)),
    "llava-8k-compiled": lambda device: compiled(random_llava(8192, device, layers=2)),
    "llava-7b": llava_7b,
}

"""What an experiment recipe holds: typed, frozen sections; unknown keys are refused."""

from __future__ import annotations

import difflib
import json
import os
import re
from contextlib import suppress
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from commit_tuning.config import METHODS, CoMMITConfig, ProjectorPlace, setting_keys
from commit_tuning.data.prompts import PROMPTS
from commit_tuning.data.tasks import tasks
from commit_tuning.errors import one_line
from commit_tuning.models.load import models
from commit_tuning.train.record import differences

COMMIT_KEYS = tuple(setting_keys())
LITERAL = {"literal": "commit", "literal-clr": "commit-clr"}
"""Arms of a comparison that are `CoMMITConfig.paper()` with this method."""


Count = Annotated[int, Field(ge=1, le=10**9)]
Batch = Annotated[int, Field(ge=1, le=2**16)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rate = Annotated[float, Field(gt=0, le=1e30)]  # what single precision can compute with
Rates = Annotated[tuple[Rate, ...], Field(max_length=1000)]
Names = Annotated[tuple[str, ...], Field(max_length=1000)]

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class Section(BaseModel):
    """Base of every section: immutable, and strict about keys, types, texts and numbers that are not finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, str_min_length=1, str_max_length=1000
    )

    @field_validator("*")
    @classmethod
    def _printable(cls, value: Any) -> Any:
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and _CONTROL.search(text):
                raise PydanticCustomError("control_letter", "a text should hold no control characters")
        return value


class Lora(Section):
    """Low-rank adapters on the language model (Hu et al. 2021), as peft understands them.

    `r: null` is no adapters at all, so that one axis holds ranks and full fine-tuning. What an adapter adds is scaled
    by `alpha / r`: a sweep of `r` alone changes that as well.
    """

    r: Annotated[int, Field(ge=1, le=2**16)] | None = 8
    alpha: float = Field(default=16.0, gt=0, le=1e6)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Names | Literal["all-linear"] = "all-linear"


class Model(Section):
    """The model, and which of its parameters are tuned.

    `name` is a local folder, a hub name of a transformers vision- or audio-language model, or a name of a plugin. With
    `lora: null` (or `lora: {r: null}`) the language model is tuned in full. `freeze` lists patterns (`*` matches
    anything) of parameter names that stay fixed; whatever else is not the language model's is tuned in full.
    `projector` says whose the projector is: the encoder's, the language model's, or a module of its own, which has the
    encoder's base rate. `dtype` is the number format of the matrices that stay fixed; everything else is float32,
    and with `bfloat16` the model runs under bfloat16 autocast. `null` keeps every weight as it was stored. Python code
    that comes with a model is run with `trust_remote_code` alone.
    """

    name: str
    lora: Lora | None = Lora()
    projector: ProjectorPlace = "encoder"
    freeze: Names = ()
    dtype: Literal["float32", "bfloat16"] | None = None
    trust_remote_code: bool = False

    @field_validator("lora")
    @classmethod
    def _no_rank_is_no_lora(cls, lora: Lora | None) -> Lora | None:
        return lora if lora is not None and lora.r is not None else None

    @model_validator(mode="after")
    def _known(self) -> Self:
        near = difflib.get_close_matches(self.name, models(), n=1, cutoff=0.9)
        if near and self.name not in models() and not os.path.lexists(self.name):
            raise ValueError(f"model.name: no model {_quoted(self.name)}; did you mean {near[0]}?")
        return self


class Data(Section):
    """The dataset: `dataset` is one of `data.tasks.TASKS`, and decides the metric.

    `root: null` is, of a dataset that is built here, its folder in the cache; limits of `null` take everything.
    `strict` stops at the first entry that cannot be read, where others are skipped, counted and listed.
    `in_memory` keeps the encoded questions of all splits in memory, for small media and many runs. `prompt` is how
    questions are asked: a name of `data.prompts.PROMPTS`. `max_tokens` bounds question and answer together; `null` is
    the positions of the model. `too_long` says what becomes of a longer question: `skip`, or `cut` it.
    `cache_features` is a folder where the outputs of frozen towers are kept, so that each picture or sound goes through
    its tower once; runs may share it. `cache_gigabytes` is the most that it may hold. Neither changes a number.
    """

    dataset: str
    root: str | None = None
    train_limit: Count | None = None
    val_limit: Count | None = None
    test_limit: Count | None = None
    strict: bool = False
    in_memory: bool = False
    prompt: str = "plain"
    max_tokens: int | None = Field(default=None, ge=1)
    too_long: Literal["skip", "cut"] = "skip"
    cache_features: str | None = None
    cache_gigabytes: float = Field(default=20.0, gt=0)

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.dataset not in tasks():
            raise ValueError(f"data.dataset: {_quoted(self.dataset)} is not one of {', '.join(tasks())}")
        if self.prompt not in PROMPTS:
            raise ValueError(f"data.prompt: {_quoted(self.prompt)} is not one of {', '.join(PROMPTS)}")
        if self.root is None and tasks()[self.dataset].make is None:
            raise ValueError(
                f"data.root is missing: dataset {self.dataset!r} is not made here, name the folder it lies in"
            )
        return self


class Train(Section):
    """The optimisation. Rates are per module: `learning_rate` is the language model's, and the encoder's if null.

    `optimizer` is `adamw`, `adam`, `sgd`, or one of a plugin. `gradient_checkpointing` keeps one activation of each
    layer and computes the others anew in the backward pass: less memory, and about a third more time.
    `checkpoint_interval` is the number of steps between two checkpoints, from which the same command goes on; one is
    also made ten minutes after the last. `null` makes one only when the run is told to stop. It changes no number, so
    a run may go on with another interval.
    """

    steps: Count = 400
    batch_size: Batch = 16
    micro_batch_size: Batch | None = None
    learning_rate: Rate = 1e-3
    encoder_learning_rate: Rate | None = None
    optimizer: str = "adamw"
    weight_decay: float = Field(default=0.0, ge=0, le=1e6)
    scheduler: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0, le=10**9)
    max_grad_norm: Rate | None = 1.0
    seed: Seed = 0
    device: str = "cpu"
    gradient_checkpointing: bool = False
    save_weights: bool = True
    checkpoint_interval: int | None = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _holds_numbers(self) -> Self:
        if self.device.startswith("meta"):
            raise ValueError("train.device: 'meta' holds no numbers; take cpu or cuda")
        return self

    @property
    def rates(self) -> dict[str, float]:
        """Base learning rate of the language model and of the encoders."""
        encoder = self.learning_rate if self.encoder_learning_rate is None else self.encoder_learning_rate
        return {"language_model": self.learning_rate, "vision": encoder}


class Eval(Section):
    """Greedy generation on the validation and test questions; `images` test pictures are kept for the report.

    `max_new_tokens: null` is what the dataset's answers need.
    """

    batch_size: Batch = 64
    max_new_tokens: Batch | None = None
    images: int = Field(default=12, ge=0, le=10**5)


class StaticGrid(Section):
    """Rates of the hand-tuned rival: every pair whose two rates differ."""

    learning_rate: Rates = ()
    encoder_learning_rate: Rates = ()


class Compare(Section):
    """What `commit-tuning compare` runs; see `experiments.compare` for the protocol.

    `methods` are those of `CoMMITConfig`, with the settings under `commit`, and `literal` and `literal-clr`: the paper
    to the letter, whatever is set there.
    Seeds count from `first_seed`: seeds that no choice was made on confirm one that was made before.
    """

    methods: Names = ("constant", "commit-clr")
    seeds: int = Field(default=3, ge=1, le=10**4)
    screen_seeds: int = Field(default=1, ge=1, le=10**4)
    first_seed: int = Field(default=0, ge=0, le=2**31)
    rates: Rates = Field(default=(1e-3,), min_length=1)
    static_grid: StaticGrid | None = None

    @model_validator(mode="after")
    def _known_methods(self) -> Self:
        known = (*METHODS, *LITERAL)
        for method in self.methods:
            if method not in known:
                raise ValueError(f"compare.methods: {_quoted(method)} is not one of {', '.join(known)}")
        if self.screen_seeds > self.seeds:
            raise ValueError(f"compare.screen_seeds ({self.screen_seeds}) exceeds compare.seeds ({self.seeds})")
        return self

    @property
    def screening(self) -> range:
        """The seeds of the screening."""
        return range(self.first_seed, self.first_seed + self.screen_seeds)

    @property
    def confirmation(self) -> range:
        """The seeds of what the screening chose."""
        return range(self.first_seed, self.first_seed + self.seeds)


class Recipe(Section):
    """One experiment, complete: what `run.json` stores and what a run can be repeated from."""

    model: Model
    data: Data
    train: Train = Train()
    commit: dict[str, Any] = Field(default_factory=dict)
    eval: Eval = Eval()
    compare: Compare = Compare()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.commit_config()
        micro = self.train.micro_batch_size
        if micro is not None and self.train.batch_size % micro:
            raise ValueError(f"train.batch_size ({self.train.batch_size}) is no multiple of micro_batch_size ({micro})")
        return self

    def commit_config(self) -> CoMMITConfig:
        """The settings of the method; coordinate descent switches at half of the run at the latest.

        Raises:
            ConfigError: A setting is not valid.
        """
        switch = self.commit.get("switch", {})
        if isinstance(switch, dict):
            switch = {"latest": max(1, self.train.steps // 2), **switch}
        return CoMMITConfig(**{**self.commit, "switch": switch})

    def generation(self) -> Eval:
        """The section `eval` with the number of new tokens resolved."""
        tokens = self.eval.max_new_tokens or tasks()[self.data.dataset].answer_tokens
        return self.eval.model_copy(update={"max_new_tokens": tokens})

    def for_record(self) -> dict[str, Any]:
        """What decides a single run, as plain JSON values, with what the method and the dataset decide resolved."""
        no_number = {"data": {"cache_features", "cache_gigabytes"}, "train": {"checkpoint_interval"}}
        plain = self.model_dump(mode="json", exclude={"compare": True, **no_number})
        return plain | {"commit": self.commit_config().to_dict(), "eval": self.generation().model_dump(mode="json")}

    def differences(self, stored: dict[str, Any]) -> list[str]:
        """The dotted keys in which the recipe of a record differs from this one.

        A key that a record lacks, as of an older version, has its default. Settings of the method always stand in it.
        """
        with suppress(ValidationError, KeyError):  # where it is no recipe of this version, it is compared as it is
            filled = Recipe.model_validate_json(json.dumps(stored | {"commit": {}})).for_record()
            stored = filled | {"commit": stored["commit"]}
        return differences(stored, self.for_record())


def valid_keys() -> tuple[str, ...]:
    """Every key that a recipe may hold, dotted."""
    return (*_keys_of(Recipe), *(f"commit.{key}" for key in COMMIT_KEYS))


def _quoted(text: str) -> str:
    return one_line(repr(text), 100)


def _keys_of(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                keys.extend(_keys_of(part, f"{prefix}{name}."))
    return keys

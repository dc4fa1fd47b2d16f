"""The arms of a comparison: which methods at which learning rates, and the recipe of each run."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from commit_tuning.config import COORDINATED, DESCENTS, REGULARIZERS, CoMMITConfig, DriftPenalty, Lookahead
from commit_tuning.errors import UserError, one_line
from commit_tuning.train.recipe.load import override
from commit_tuning.train.recipe.schema import LITERAL, Compare, Recipe, StaticGrid, valid_keys

_REGULARIZER, _PENALTY = "commit.regularizer", DriftPenalty.name
MAX_RUNS = 20_000
"""Most runs of a comparison."""

MAX_NAME = 200
"""Longest name of an arm's folder, in bytes; file systems take 255."""

CONSTANT = "constant"
STATIC = "static"
METHOD_LABELS = {
    "constant": "Constant LR",
    "feature-cd": "Feature CD",
    "language-cd": "Language CD",
    "commit-clr": "CoMMIT-CLR",
    "commit": "CoMMIT",
    "literal": "CoMMIT, literal",
    "literal-clr": "CoMMIT-CLR, literal",
    "synced": "Synced LR",
    "language-lr-up": "Language LR up",
    "encoder-lr-up": "Encoder LR up",
    "static": "Static pair",
}
Axes = tuple[tuple[str, tuple[Any, ...]], ...]
Variation = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Arm:
    """A method with its learning rates: what is repeated over seeds.

    Attributes:
        method: A method of `CoMMITConfig`, one of `LITERAL`, or `"static"`: two fixed rates that differ.
        learning_rate: The language model's base rate.
        encoder_learning_rate: The encoder's base rate.
        variation: The settings of the axes that this arm differs in.
    """

    method: str
    learning_rate: float
    encoder_learning_rate: float
    variation: Variation = ()

    @property
    def family(self) -> str:
        """Name of the method and of the axis settings; the arms of a family differ in their rates alone."""
        varied = ", ".join(f"{_words(key)} {as_text(value)}" for key, value in self.variation)
        return METHOD_LABELS[self.method] + (f" ({varied})" if varied else "")

    @property
    def rates(self) -> str:
        """The base rates as text: one number, or language model / encoder."""
        return rates_text(self.learning_rate, self.encoder_learning_rate)

    @property
    def slug(self) -> str:
        """A folder name, unique among the arms of a comparison."""
        varied = "".join(f"_{key}-{as_text(value)}" for key, value in self.variation)
        name = re.sub(r"[^\w.+-]+", "-", f"{self.method}_lr-{self.rates.replace(' / ', '-')}{varied}")
        raw = name.encode()
        if len(raw) <= MAX_NAME:
            return name
        return f"{raw[: MAX_NAME - 17].decode(errors='ignore')}-{hashlib.sha256(raw).hexdigest()[:16]}"

    def recipe(self, base: Recipe, seed: int, save_weights: bool = False) -> Recipe:
        """The recipe of one run of this arm.

        Raises:
            UserError: The settings of the axes do not make a valid recipe.
        """
        changes: dict[str, Any] = {
            **self._method(base),
            "train.learning_rate": self.learning_rate,
            "train.encoder_learning_rate": self.encoder_learning_rate,
            "train.seed": seed,
            "train.save_weights": save_weights,
            **dict(self.variation),
        }
        return override(base, changes)

    def _method(self, base: Recipe) -> dict[str, Any]:
        """The settings of the method."""
        if self.method in LITERAL:
            settings = CoMMITConfig.paper(method=LITERAL[self.method]).to_dict()
            return {f"commit.{key}": value for key, value in settings.items() if key != "switch"}
        regularizer = base.commit.get("regularizer")
        if isinstance(base.commit_config().regularizer, DriftPenalty) and _REGULARIZER not in dict(self.variation):
            raise UserError(
                f"{_REGULARIZER}={_PENALTY} in a comparison: give it as --axis {_REGULARIZER}={_PENALTY}, "
                "so that the arms without it are there, too"
            )
        return {
            "commit.method": CONSTANT if self.method == STATIC else self.method,
            "commit.regularizer": (regularizer if self.method == "commit" else None) or "auto",
        }


def rates_text(rate: float, encoder_rate: float) -> str:
    """Two base rates as text.

    Example:
        >>> rates_text(1e-3, 1e-3), rates_text(1e-3, 1e-4)
        ('0.001', '0.001 / 0.0001')
    """
    return f"{rate:g}" if rate == encoder_rate else f"{rate:g} / {encoder_rate:g}"


def screening_arms(recipe: Recipe, axes: Axes = ()) -> list[Arm]:
    """Every method at every rate of the sweep, and every static pair; Constant LR is always among them.

    Raises:
        UserError: An axis that is no key of a recipe, or one with a value twice, or more runs than `MAX_RUNS`.
    """
    plan = recipe.compare
    methods = dict.fromkeys((CONSTANT, *plan.methods))
    _bound_runs(plan, len(methods), axes)
    swept = [(method, rate, rate) for method in methods for rate in plan.rates]
    swept += [(STATIC, *pair) for pair in static_pairs(plan.static_grid, plan.rates)]
    arms = [Arm(*arm, variation) for arm in swept for variation in variations(arm[0], axes)]
    slugs = [arm.slug for arm in arms]
    twice = [slug for slug, count in Counter(slugs).items() if count > 1]
    if twice:
        raise UserError(f"two arms would share the folder {twice[0]}; give every rate and every value of an axis once")
    return arms


def _bound_runs(plan: Compare, methods: int, axes: Axes) -> None:
    """Refuse a plan of more runs than anybody can wait for, before any of them is listed."""
    grid = plan.static_grid
    sides = (grid.learning_rate or plan.rates, grid.encoder_learning_rate or plan.rates) if grid else ((), ())
    bases = methods * len(plan.rates) + math.prod(map(len, sides))
    runs = bases * math.prod(len(values) + 1 for _, values in axes) * plan.seeds
    if runs > MAX_RUNS:
        raise UserError(f"the comparison has up to {one_line(f'{runs:,}', 40)} runs, and {MAX_RUNS:,} are the most")


def as_text(value: object) -> str:
    """A plain value as a recipe writes it: `null`, `true`, numbers and text."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _words(key: str) -> str:
    """A key without its section, as words: `model.lora.r` is `lora r`, `commit.controller.bound` is `bound`."""
    return " ".join(key.replace("commit.controller.", "commit.").split(".")[1:]).replace("_", " ")


def static_pairs(grid: StaticGrid | None, rates: tuple[float, ...]) -> list[tuple[float, float]]:
    """The pairs (language model's rate, encoder's rate) that differ; a side left out of the grid takes the sweep's."""
    if grid is None:
        return []
    sides = grid.learning_rate or rates, grid.encoder_learning_rate or rates
    return [(language, encoder) for language, encoder in itertools.product(*sides) if language != encoder]


def variations(method: str, axes: Axes) -> list[Variation]:
    """The combinations of axis settings that matter to a method.

    Settings of the switch matter to coordinate descent, those of the regulariser to CoMMIT, the others under `commit`
    to the methods that kappa steers, and what is not under `commit` to all. An axis over the regulariser itself adds
    Constant LR with each of its readings, and CoMMIT-CLR with the penalty, to what they are without.

    Raises:
        UserError: An axis that is no key of a recipe, or one that the comparison sets itself.
    """
    for key, _ in axes:
        if key not in valid_keys() or key.startswith("compare."):
            raise UserError(f"--axis: {key!r} is no setting of a run; use e.g. commit.kappa_window=10,50")
        if key in ("train.seed", "train.learning_rate", "train.encoder_learning_rate", "commit.method"):
            raise UserError(f"--axis: {key!r} is set by the comparison; use --seeds, --rates or --methods")
    regularizer = [axis for axis in axes if axis[0].startswith(_REGULARIZER)]
    others = [axis for axis in axes if axis not in regularizer and _matters(axis[0], method)]
    settings = [chosen for chosen in _combinations(regularizer) if _regularised(method, dict(chosen))]
    if method != "commit":
        settings.insert(0, ())
    return [(*first, *second) for first in _combinations(others) for second in settings]


def _combinations(axes: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Variation]:
    return list(itertools.product(*([(key, value) for value in values] for key, values in axes)))


def _regularised(method: str, settings: dict[str, Any]) -> bool:
    """Whether a method takes these settings of the regulariser; only CoMMIT has one if they name none."""
    reading = settings.get(_REGULARIZER, Lookahead.name if method == "commit" else None)
    accepted: dict[str, Collection[str]] = {
        "constant": REGULARIZERS,
        "commit-clr": (_PENALTY,),
        "commit": REGULARIZERS.keys() - {_PENALTY},
    }
    return reading in accepted.get(method, ())


def _matters(key: str, method: str) -> bool:
    if key.startswith("commit.switch"):
        return method in DESCENTS
    return not key.startswith("commit.") or method in COORDINATED


def choose(arms: list[Arm], validation: Mapping[Arm, float]) -> list[Arm]:
    """The arm of each family with the best validation accuracy; of equals, the first (the sweep's lower rate)."""
    best: dict[str, Arm] = {}
    for arm in arms:
        if arm.family not in best or validation[arm] > validation[best[arm.family]]:
            best[arm.family] = arm
    return list(best.values())


def reference_of(arm: Arm, chosen: list[Arm]) -> Arm:
    """The chosen Constant LR that shares the arm's settings outside of the method."""
    constants = [other for other in chosen if other.method == CONSTANT]
    return next(other for other in constants if set(other.variation) <= set(arm.variation))

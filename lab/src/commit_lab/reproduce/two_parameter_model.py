"""The smallest multimodal model, one parameter for each module, and its training under the library's controllers.

A question says t = +-1 and a picture u = +-1. The encoder S hands s u to the language model X, which answers yes with
logit z = x (t + s u): x is how much it trusts its input, s what the encoder makes of the picture. The dataset holds
every pair (t, u) 16 times with fixed answers, so that the best model is known: x = log(5) / 2, s x = log(45) / 2. Where
there is little to see (s near zero or wrong) the language model learns to mistrust its input, and with x near zero the
encoder's gradient, a multiple of x, is gone: so one module's learning stops the other's.

Steps are plain gradient descent; controllers, moving average, kappa and divergence are the library's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from commit_tuning.config import CoMMITConfig
from commit_tuning.measure.balance import balance_coefficient
from commit_tuning.measure.divergence import token_kl
from commit_tuning.measure.probe import Measurement
from commit_tuning.methods import make_controller
from commit_tuning.partition.modules import LANGUAGE_MODEL, ModulePartition

ENCODER = "encoder"
REPEATS = 16  # of every (t, u)
YES = {(1, 1): 15, (1, -1): 4, (-1, 1): 12, (-1, -1): 1}  # answers that are yes, of REPEATS
BEST = (math.log(5) / 2, math.log(45) / math.log(5))  # (x, s): the log-odds are +-log 15 and +-log 3
CLOSE = 1.1  # a loss within 10 % of the best one
LAST = 20  # steps that the end of a trajectory is the mean of: one batch more or less decides no row


@dataclass(frozen=True)
class Samples:
    """Samples of the dataset, each float64 [samples]: text t, picture u, answer y (1 for yes, or the share of yes)."""

    text: Tensor
    picture: Tensor
    answer: Tensor

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.answer)

    def __getitem__(self, index: Tensor) -> Samples:
        """Return the samples with these numbers."""
        return Samples(self.text[index], self.picture[index], self.answer[index])

    def logits(self, x: Tensor, s: Tensor) -> Tensor:
        """Return the logit of yes, [..., samples], for parameters of shape [...]."""
        return x[..., None] * (self.text + s[..., None] * self.picture)

    def loss(self, x: Tensor, s: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats, [...]."""
        z = self.logits(x, s)
        return (softplus(z) - self.answer * z).mean(-1)

    def gradient(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the loss by x and by s, each [...]."""
        error = torch.sigmoid(self.logits(x, s)) - self.answer
        by_x = self.text + s[..., None] * self.picture
        return (error * by_x).mean(-1), (error * x[..., None] * self.picture).mean(-1)

    def drifts(self, x: Tensor, s: Tensor, new_x: Tensor, new_s: Tensor) -> tuple[Tensor, Tensor]:
        """Return d_X and d_S of Eq. 2-3 in nats, each [...]: what moving x alone, and s alone, does to the answers."""
        moved = torch.stack((self.logits(new_x, s), self.logits(x, new_s)))
        old = self.logits(x, s).expand_as(moved)
        pairs = (torch.stack((torch.zeros_like(z), z), dim=-1).reshape(-1, 2) for z in (old, moved))
        language, encoder = token_kl(*pairs).reshape(moved.shape).mean(-1)
        return language, encoder


def dataset() -> Samples:
    """Return all 64 samples."""
    rows = [(t, u, float(i < yes)) for (t, u), yes in YES.items() for i in range(REPEATS)]
    return Samples(*torch.tensor(rows, dtype=torch.float64).T)


def expected() -> Samples:
    """Return the four pairs (t, u) with their share of yes: the dataset's loss, gradient and drifts from 4 rows."""
    rows = [(t, u, yes / REPEATS) for (t, u), yes in YES.items()]
    return Samples(*torch.tensor(rows, dtype=torch.float64).T)


def point(x: float, s: float) -> tuple[Tensor, Tensor]:
    """Return the two parameters as float64 scalars."""
    return torch.tensor(x, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)


def best_loss() -> float:
    """Return the loss of the best model, in nats."""
    return float(expected().loss(*point(*BEST)))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a trajectory starts and what it may do.

    Attributes:
        start: (x, s).
        language_rate: Base learning rate of x.
        encoder_rate: Base learning rate of s.
        steps: Optimizer steps.
        batch: Samples of a step, drawn without replacement; None for all of them: no noise.
        seed: Of the order of the samples.
    """

    start: tuple[float, float] = (1.2, -0.5)
    language_rate: float = 0.2
    encoder_rate: float = 0.2
    steps: int = 120
    batch: int | None = 16
    seed: int = 0


@dataclass(frozen=True)
class Trajectory:
    """The path of a run in the plane of the two parameters.

    Attributes:
        points: (x, s) before every step and after the last, [steps + 1].
        losses: Of the whole dataset at every point, in nats.
        kappas: Of every step's batch, at the rates in force; NaN where a module did not move.
        multipliers: Of the language model's and the encoder's rate, at every step.
    """

    points: list[tuple[float, float]]
    losses: list[float]
    kappas: list[float]
    multipliers: list[tuple[float, float]]

    @property
    def final_loss(self) -> float:
        """Mean over the last 20 points."""
        return math.fsum(self.losses[-LAST:]) / LAST

    @property
    def final_kappa(self) -> float:
        """Geometric mean over the last 20 steps; NaN if a module stood still in most of them."""
        logs = [math.log(kappa) for kappa in self.kappas[-LAST:] if not math.isnan(kappa)]
        return math.exp(math.fsum(logs) / len(logs)) if len(logs) > LAST / 2 else math.nan

    @property
    def arrived(self) -> int | None:
        """The first step after which the loss is within 10 % of the best; None if it never is."""
        limit = CLOSE * best_loss()
        return next((step for step, loss in enumerate(self.losses) if loss <= limit), None)

    @property
    def settled(self) -> int | None:
        """The step from which on the loss stays within 10 % of the best; None if it does not."""
        limit = CLOSE * best_loss()
        outside = [step for step, loss in enumerate(self.losses) if not loss <= limit]
        first = outside[-1] + 1 if outside else 0
        return first if first < len(self.losses) else None


def trajectory(config: CoMMITConfig, setting: Setting) -> Trajectory:
    """Train the two parameters under the method, the measurements and the controller that `config` names.

    Args:
        config: Of a method without a regulariser that needs no gradients of its own. `probe.samples` and `drift_scale`
            are not used: every measurement is of the whole batch and of the step as it is.
        setting: Start, rates, steps and batches.
    """
    samples, controller = dataset(), make_controller(config, _partition())
    multipliers = controller.multipliers(0)
    x, s = point(*setting.start)
    run = Trajectory([setting.start], [], [], [])
    for step, batch in enumerate(_batches(samples, setting), start=1):
        by_x, by_s = batch.gradient(x, s)
        new_x = x - setting.language_rate * multipliers[LANGUAGE_MODEL] * by_x
        new_s = s - setting.encoder_rate * multipliers[ENCODER] * by_s
        drift = dict(zip((LANGUAGE_MODEL, ENCODER), map(float, batch.drifts(x, s, new_x, new_s)), strict=True))
        run.kappas.append(balance_coefficient(drift[LANGUAGE_MODEL], drift[ENCODER]))
        run.multipliers.append((multipliers[LANGUAGE_MODEL], multipliers[ENCODER]))
        if (step - 1) % (config.probe.interval or setting.steps) == 0:
            controller.observe(Measurement.of_drift(drift, float(batch.loss(x, s)), len(batch)), multipliers)
        if controller.settling or step % config.lr_update_interval == 0:
            multipliers = controller.multipliers(step)
        x, s = new_x, new_s
        run.points.append((float(x), float(s)))
    run.losses.extend(expected().loss(*torch.tensor(run.points, dtype=torch.float64).T).tolist())
    return run


def kappa_field(x: Tensor, s: Tensor, setting: Setting) -> Tensor:
    """Return kappa of the plain gradient step on the whole dataset at the base rates, without any control.

    Args:
        x: Language model parameters, float64 of any shape [...].
        s: Encoder parameters, the same shape.
        setting: Gives the base rates.

    Returns:
        float64 [...]; NaN where a module has no gradient.
    """
    samples = expected()
    by_x, by_s = samples.gradient(x, s)
    drifts = samples.drifts(x, s, x - setting.language_rate * by_x, s - setting.encoder_rate * by_s)
    pairs = zip(*(drift.flatten().tolist() for drift in drifts), strict=True)
    return torch.tensor([balance_coefficient(*pair) for pair in pairs], dtype=torch.float64).reshape(x.shape)


def _batches(samples: Samples, setting: Setting) -> Iterator[Samples]:
    """Yield as many batches as there are steps; the samples are shuffled again whenever they are used up."""
    generator, size = torch.Generator().manual_seed(setting.seed), setting.batch or len(samples)
    order: list[int] = []
    for _ in range(setting.steps):
        if len(order) < size:
            order = torch.randperm(len(samples), generator=generator).tolist()
        yield samples[torch.tensor(order[:size])]
        order = order[size:]


def _partition() -> ModulePartition:
    return ModulePartition({name: [torch.nn.Parameter(torch.zeros(1))] for name in (LANGUAGE_MODEL, ENCODER)})

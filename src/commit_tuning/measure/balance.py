"""The balance coefficient (Eq. 4), its moving average (Eq. 7), the measurement that they are of, and its records."""

from __future__ import annotations

import bisect
import itertools
import math
import operator
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from commit_tuning.measure.measuring import Step
from commit_tuning.measure.probe import Measurement
from commit_tuning.partition.modules import LANGUAGE_MODEL


def balance_coefficient(language_drift: float, encoder_drift: float) -> float:
    """Kappa = d_X / d_S (Eq. 4).

    Returns:
        The ratio, or NaN where there is none: a drift that is zero (the module did not move), infinite or NaN.
        Kappa >> 1: the update inclines toward the language model; kappa -> 0: toward the encoder.

    Example:
        >>> balance_coefficient(0.5, 0.25)
        2.0
        >>> balance_coefficient(0.5, 0.0)
        nan
    """
    drifts = (language_drift, encoder_drift)
    if not all(math.isfinite(d) and d > 0 for d in drifts):
        return math.nan
    return language_drift / encoder_drift


START = 4  # measurements that a `FadingWindow` forgets before anything fades
ENOUGH = 16  # samples over which "grouped" takes a mean before it takes a logarithm


class RatioWindow:
    """The moving average of a ratio over the last measurements. In Eq. 7 the ratio is kappa.

    While the window fills, the average is over the measurements there are.

    Args:
        size: Measurements in the window, N_kappa.
        estimator: `"arithmetic"` mean of the ratios, as printed; `"geometric"` mean, which one outlier cannot rule;
            `"ratio"` of the sums, sum of what is above over sum of what is below; `"grouped"`, the geometric mean of
            the ratios of sums over as many neighbouring measurements as it takes to hold 16 samples. A drift is one of
            few samples for the most part, so the logarithm of a mean over few is too low in the mean.

    Example:
        >>> window = RatioWindow(size=2, estimator="arithmetic")
        >>> for pair in [(9.0, 1.0), (1.0, 1.0), (3.0, 1.0)]:
        ...     window.push(*pair)
        >>> window.value
        2.0
    """

    def __init__(self, size: int, estimator: str) -> None:
        self.estimator = estimator
        self._pairs: deque[tuple[float, float, float]] = deque(maxlen=size)

    def push(self, above: float, below: float, samples: float = 0) -> None:
        """Add a measurement on so many samples, 0 if not known; one that has no ratio is left out."""
        if not math.isnan(balance_coefficient(above, below)):
            self._pairs.append((above, below, float(samples)))

    def __len__(self) -> int:
        """How many measurements are in the window."""
        return len(self._pairs)

    @property
    def value(self) -> float:
        """The average; NaN before the first measurement."""
        if not self._pairs:
            return math.nan
        if self.estimator == "ratio":
            return _ratio_of_sums([*self._pairs])
        ratios = [*map(_ratio_of_sums, self._groups())]
        weights = self._weights(len(ratios))
        values = ratios if self.estimator == "arithmetic" else [*map(math.log, ratios)]
        mean = math.fsum(map(operator.mul, weights, values)) / math.fsum(weights)
        return mean if self.estimator == "arithmetic" else math.exp(mean)

    def _weights(self, count: int) -> list[float]:
        """Of the oldest ratios, or groups, in the window."""
        return [1.0] * count

    def _groups(self) -> list[list[tuple[float, float, float]]]:
        """Each measurement with those after it that it needs to be of enough samples; all where all are of fewer."""
        pairs = [*self._pairs]
        if self.estimator != "grouped":
            return [[pair] for pair in pairs]
        ends = itertools.accumulate(samples or ENOUGH for *_, samples in pairs)
        totals = [0.0, *ends]
        groups = []
        for start, before in enumerate(totals[:-1]):
            end = bisect.bisect_left(totals, before + ENOUGH)
            if end < len(totals):
                groups.append(pairs[start:end])
        return groups or [pairs]

    def state_dict(self) -> dict[str, Any]:
        """The measurements in the window."""
        return {"pairs": list(self._pairs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the measurements of `state_dict()`."""
        self._pairs.clear()
        self._pairs.extend((float(above), float(below), float(sum(rest))) for above, below, *rest in state["pairs"])


def _ratio_of_sums(pairs: Sequence[tuple[float, float, float]]) -> float:
    return math.fsum(above for above, *_ in pairs) / math.fsum(below for _, below, _ in pairs)


class SuffixWindow(RatioWindow):
    """A moving average that forgets how training began: it keeps the last half of what came, until that is `size`.

    The first measurements are of a model as it never is again: adapters at zero, the first step of an optimizer. A mean
    of all there is would carry them for a whole window. To average the last half of what there is, is known as suffix
    averaging (Rakhlin et al. 2012, arXiv 1109.5647).

    Example:
        >>> window = SuffixWindow(size=20, estimator="arithmetic")
        >>> for drift in (900.0, 1.0, 2.0, 4.0):
        ...     window.push(drift, 1.0)
        >>> window.value, window.seen, window.full
        (3.0, 4, False)
    """

    def __init__(self, size: int, estimator: str) -> None:
        super().__init__(size, estimator)
        self.seen = 0

    @property
    def full(self) -> bool:
        """Whether it has grown to its size."""
        return len(self) == self._pairs.maxlen

    def push(self, above: float, below: float, samples: float = 0) -> None:
        """Add a measurement; one that has no ratio is left out, and does not count."""
        if math.isnan(balance_coefficient(above, below)):
            return
        super().push(above, below, samples)
        self.seen += 1
        self._forget()

    def _forget(self) -> None:
        """Drop what is too old."""
        while len(self) > math.ceil(self.seen / 2):
            self._pairs.popleft()

    def state_dict(self) -> dict[str, Any]:
        """The measurements in the window, and how many there were."""
        return {**super().state_dict(), "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        super().load_state_dict(state)
        self.seen = int(state.get("seen", len(self)))  # of a window at a fixed interval, as many as it holds


class FadingWindow(SuffixWindow):
    """A moving average of measurements that are rarer and rarer, by need.

    It is of the last 2 `size` measurements. The weight of each grows with the square of its number, so that old ones
    fade out (polynomial-decay averaging, Shamir and Zhang 2013, arXiv 1212.1824). The first four are of a model as it
    never is again, and are dropped as by `SuffixWindow`.

    Example:
        >>> window = FadingWindow(size=20, estimator="arithmetic")
        >>> for drift in (900.0, 13.0, 26.0):
        ...     window.push(drift, 1.0)
        >>> window.value, window.seen, window.full  # (4 x 13 + 9 x 26) / 13
        (22.0, 3, False)
    """

    def __init__(self, size: int, estimator: str) -> None:
        super().__init__(2 * size, estimator)

    def _forget(self) -> None:
        if self.seen - len(self) < START:
            super()._forget()

    def _weights(self, count: int) -> list[float]:
        first = self.seen - len(self) + 1
        return [float(number) ** 2 for number in range(first, first + count)]


def push_kappas(windows: Mapping[str, RatioWindow], drift: Mapping[str, float], samples: float) -> None:
    """Add kappa of a measurement, on so many samples, to the window of every encoder that was in it."""
    for name, window in windows.items():
        window.push(drift.get(LANGUAGE_MODEL, math.nan), drift.get(name, math.nan), samples)


def state_of(windows: Mapping[str, RatioWindow]) -> dict[str, Any]:
    """The states of windows by name."""
    return {name: window.state_dict() for name, window in windows.items()}


def load_states(windows: Mapping[str, RatioWindow], states: Mapping[str, Any]) -> None:
    """Take over a `state_of()`."""
    for name, window in windows.items():
        window.load_state_dict(states[name])


class Balance:
    """Kappa of every encoder, as of the last measurement and as a moving average.

    Args:
        encoders: Names of the feature encoders.
        size: Measurements in the moving average.
        estimator: Of the moving average, as for `RatioWindow`.
        by_need: Whether measurements are taken by need, so that the average is a `FadingWindow`.

    Attributes:
        measurement: The last one; None before the first.
        windows: Encoder to the moving average of its kappa.
    """

    def __init__(self, encoders: Sequence[str], size: int, estimator: str, by_need: bool = False) -> None:
        self.measurement: Measurement | None = None
        window = FadingWindow if by_need else RatioWindow
        self.windows = {name: window(size, estimator) for name in encoders}

    def add(self, measurement: Measurement) -> None:
        """Take note of a measurement."""
        self.measurement = measurement
        push_kappas(self.windows, measurement.drift, measurement.samples)

    @property
    def drift(self) -> dict[str, float]:
        """Module to its drift in nats at the last measurement (Eq. 2-3); a module without a gradient is left out."""
        return self.measurement.drift if self.measurement else {}

    @property
    def noise_floor(self) -> dict[str, float]:
        """Module to what rounding alone adds to its drift, in nats, at the last look; empty before the first."""
        return {m: r.floor for m, r in self.measurement.readings.items()} if self.measurement else {}

    @property
    def kappas(self) -> dict[str, float]:
        """Encoder to the balance coefficient of the last measurement (Eq. 4); NaN where a module was not in it."""
        drift = self.drift
        language = drift.get(LANGUAGE_MODEL, math.nan)
        return {name: balance_coefficient(language, drift.get(name, math.nan)) for name in self.windows}

    @property
    def kappa(self) -> float:
        """The language model's drift over the mean drift of the encoders that moved; NaN where there is none."""
        drift = self.drift
        moved = [drift[name] for name in self.windows if drift.get(name, 0) != 0]
        mean = sum(moved) / len(moved) if moved else math.nan
        return balance_coefficient(drift.get(LANGUAGE_MODEL, math.nan), mean)

    @property
    def smoothed_kappas(self) -> dict[str, float]:
        """Encoder to the moving average of its balance coefficient (Eq. 7); NaN before the first measurement."""
        return {name: window.value for name, window in self.windows.items()}

    @property
    def smoothed_kappa(self) -> float:
        """The harmonic mean of the smoothed kappas that there are, as `kappa` has the encoders' mean below."""
        values = [value for value in self.smoothed_kappas.values() if not math.isnan(value)]
        return len(values) / sum(1 / value for value in values) if values else math.nan

    def summary(self, rates: Mapping[str, float], starving: Mapping[str, int]) -> dict[str, float]:
        """The last measurement: only what there is, all finite; see `Coordinator.summary`."""
        record = {"kappa": self.kappa, "smoothed_kappa": self.smoothed_kappa}
        if len(self.windows) > 1:
            record.update({f"kappa/{name}": kappa for name, kappa in self.kappas.items()})
            record.update({f"smoothed_kappa/{name}": kappa for name, kappa in self.smoothed_kappas.items()})
        for kind, values in (("drift", self.drift), ("lr", rates), ("starving", starving)):
            record.update({f"{kind}/{name}": value for name, value in values.items()})
        return {name: float(value) for name, value in record.items() if math.isfinite(value)}

    def metrics(self, modules: Iterable[str], step: Step, starving: Mapping[str, int]) -> dict[str, float | None]:
        """The last step; None where nothing was measured at it; see `Coordinator.metrics`."""
        measured = self.measurement if step.measured else None
        readings, h = (measured.readings, measured.h) if measured else ({}, {})
        record: dict[str, float | None] = {
            "kappa": _finite(self.kappa) if step.measured else None,
            "smoothed_kappa": _finite(self.smoothed_kappa),
        }
        if len(self.windows) > 1:
            kappas = self.kappas.items()
            record.update({f"kappa/{name}": _finite(kappa) if step.measured else None for name, kappa in kappas})
            record.update({f"smoothed_kappa/{name}": _finite(kappa) for name, kappa in self.smoothed_kappas.items()})
        for name in modules:
            reading = readings.get(name)
            record[f"drift/{name}"] = _finite(reading.drift) if reading else None
            record[f"drift_scale/{name}"] = reading.scale if reading else None
            record[f"noise_floor/{name}"] = _finite(reading.floor) if reading else None
            record[f"starving/{name}"] = starving.get(name)
            record[f"lr/{name}"] = _finite(step.rates[name])
            for norm in ("grad_norm", "step_norm", "theta_norm"):
                record[f"{norm}/{name}"] = step.norms.get(f"{norm}/{name}")
            record[f"h/{name}"] = h.get(name)
        return record

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {"windows": state_of(self.windows), "measurement": self.measurement and asdict(self.measurement)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        measurement = state["measurement"]
        self.measurement = measurement and Measurement.of(**measurement)
        load_states(self.windows, state["windows"])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

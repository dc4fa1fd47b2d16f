"""Flat records of a step, for a log or a progress line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from commit_tuning.measure.balance import Balance
from commit_tuning.measure.measuring import Step


def summary(balance: Balance, rates: Mapping[str, float], starving: Mapping[str, int]) -> dict[str, float]:
    """The last measurement: only what there is, all finite; see `Coordinator.summary`."""
    record = {"kappa": balance.kappa, "smoothed_kappa": balance.smoothed_kappa}
    if len(balance.windows) > 1:
        record.update({f"kappa/{name}": kappa for name, kappa in balance.kappas.items()})
        record.update({f"smoothed_kappa/{name}": kappa for name, kappa in balance.smoothed_kappas.items()})
    for kind, values in (("drift", balance.drift), ("lr", rates), ("starving", starving)):
        record.update({f"{kind}/{name}": value for name, value in values.items()})
    return {name: float(value) for name, value in record.items() if math.isfinite(value)}


def metrics(
    modules: Iterable[str], step: Step, balance: Balance, starving: Mapping[str, int]
) -> dict[str, float | None]:
    """The last step; None where nothing was measured at it; see `Coordinator.metrics`."""
    measured = balance.measurement if step.measured else None
    readings, h = (measured.readings, measured.h) if measured else ({}, {})
    record: dict[str, float | None] = {
        "kappa": _finite(balance.kappa) if step.measured else None,
        "smoothed_kappa": _finite(balance.smoothed_kappa),
    }
    if len(balance.windows) > 1:
        kappas = balance.kappas.items()
        record.update({f"kappa/{name}": _finite(kappa) if step.measured else None for name, kappa in kappas})
        record.update({f"smoothed_kappa/{name}": _finite(kappa) for name, kappa in balance.smoothed_kappas.items()})
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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

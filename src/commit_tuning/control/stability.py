"""Whether a coordinated loop settles, rings or explodes: its largest root, without a simulation.

`docs/explanation/stability.md` says more.

Kappa = rho (lr_X / lr_S)^p with p = 2 in the quadratic range of KL. A controller sets log(lr_X / lr_S) to a constant
minus `feedback` times the mean of its own last W values, W being the learning-rate updates that the window spans.
"""

from __future__ import annotations

import math

import torch

from commit_tuning.config import CoMMITConfig, Compensated, TrustRegion

LOG_SD = 1.2  # standard deviation of log kappa that was measured in a real run
_LASTING = 0.9  # a loop that keeps this share of a deviation over a whole window rings


def window_span(config: CoMMITConfig) -> float:
    """Learning-rate updates that the moving average spans: W = N_kappa x probe interval / N_lr, at least 1.

    Where measurements are rarer than updates, an update without a new measurement changes nothing, and W = N_kappa.
    """
    return max(1.0, config.kappa_window * _updates_per_measurement(config))


def _updates_per_measurement(config: CoMMITConfig) -> float:
    interval = config.probe.shortest_interval or 1
    return interval / max(interval, config.lr_update_interval)


def effective_span(config: CoMMITConfig, log_sd: float = LOG_SD) -> float:
    """The span that a mean of log-normal kappas amounts to, at least 1.

    An arithmetic mean of n of them varies as one of n exp(-log_sd^2) equal shares does: its outliers rule it. The
    geometric mean and the ratio of sums, whose outliers are in two sums that old values bound, keep the whole span.
    """
    span = window_span(config)
    return max(1.0, span * math.exp(-(log_sd**2))) if config.kappa_estimator == "arithmetic" else span


def feedback(config: CoMMITConfig, exponent: float = 2.0) -> float:
    """What multiplies the mean of the last log rate ratios, with the opposite sign, in the next one.

    Args:
        config: Its controller decides: the exponent for Eq. 8 in any form, half of what the exponent is above 2 for
            `"compensated"` and, module by module, `"trust-region"`.
        exponent: p of kappa = rho (lr_X / lr_S)^p.
    """
    return (exponent - 2) / 2 if isinstance(config.controller, Compensated | TrustRegion) else exponent


def largest_root(span: float, feedback: float) -> float:
    """Largest modulus of the roots of r_n = -feedback x (mean of the last `span` values of r).

    The oldest value counts by the fraction of it that is inside. Below 1 the loop settles, at 1 it rings for ever,
    above 1 it explodes.

    Example:
        >>> [round(largest_root(span, 2.0), 2) for span in (1, 4 / 3, 1.5, 2, 10)]
        [2.0, 1.0, 0.82, 1.0, 0.93]
    """
    whole = math.ceil(span - 1e-9)
    weights = torch.full((whole,), 1.0, dtype=torch.float64)
    weights[-1] = span - (whole - 1)
    companion = torch.diag(torch.ones(whole - 1, dtype=torch.float64), -1)
    companion[0] = -feedback * weights / span
    return float(torch.linalg.eigvals(companion).abs().max())


def instability(config: CoMMITConfig) -> str | None:
    """One line about a coordinated configuration whose loop does not settle, with the numbers; None where it does."""
    span, effective = window_span(config), effective_span(config)
    if not _unstable(config, effective):
        return None
    root = largest_root(effective, feedback(config))
    verdict = "explodes" if root > 1.01 else "rings"
    outliers = f", {effective:.3g} in effect as outliers of kappa rule an arithmetic mean" if effective < span else ""
    return (
        f"controller={config.controller.name!r} is unstable: kappa_window={config.kappa_window} at "
        f"probe.interval={config.interval} and lr_update_interval={config.lr_update_interval} spans W={span:.3g} "
        f"updates{outliers}; the loop's largest root is {root:.3g}, so it {verdict}. Set "
        f"kappa_window>={_settling_window(config)}, or controller='compensated' (docs/explanation/stability.md)"
    )


def _unstable(config: CoMMITConfig, span: float) -> bool:
    """A window longer than the feedback always settles; close to it, it rings for long."""
    factor = abs(feedback(config))
    return factor >= 1 and span < 2 * factor and largest_root(span, factor) ** span > _LASTING


def _settling_window(config: CoMMITConfig) -> int:
    """The shortest window whose effective span is half as long again as the feedback: no multiple of it rings."""
    wanted = 1.5 * abs(feedback(config))
    shrinkage = math.exp(-(LOG_SD**2)) if config.kappa_estimator == "arithmetic" else 1.0
    return math.ceil(wanted / (_updates_per_measurement(config) * shrinkage))

"""Eq. 8: from balance coefficients to multipliers of learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping

from commit_tuning.partition.modules import LANGUAGE_MODEL


def learning_rate_multipliers(smoothed_kappas: Mapping[str, float], normalization: str = "sum") -> dict[str, float]:
    """Eq. 8 for M modules: multiplier_m = M kappa_m / sum_j kappa_j, where the language model's own kappa is 1.

    With one encoder this is lr_X = 2 alpha / (kappa + 1) and lr_S = 2 alpha / (1/kappa + 1) exactly. The multipliers
    sum to M, and the language model's over an encoder's is 1 / kappa of that encoder.

    Args:
        smoothed_kappas: Encoder name to its smoothed balance coefficient, > 0.
        normalization: `"sum"` as printed; `"product"`: the same ratios, scaled to multipliers whose product is 1.

    Example:
        >>> learning_rate_multipliers({"vision": 4.0})
        {'language_model': 0.4, 'vision': 1.6}
        >>> learning_rate_multipliers({"vision": 4.0}, "product")
        {'language_model': 0.5, 'vision': 2.0}
    """
    shares = {LANGUAGE_MODEL: 1.0, **smoothed_kappas}
    mean = sum(shares.values()) / len(shares)
    if normalization == "product":
        mean = math.exp(math.fsum(map(math.log, shares.values())) / len(shares))
    return {module: share / mean for module, share in shares.items()}

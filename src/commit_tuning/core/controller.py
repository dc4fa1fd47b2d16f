"""What every controller of learning rates is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Controller:
    """What decides the multipliers. The defaults are those of a controller that looks at smoothed kappa at most."""

    @property
    def starting(self) -> bool:
        """Whether it waits for its first measurement, which is to be taken as soon as can be."""
        return False

    @property
    def settling(self) -> bool:
        """Whether every measurement is to set the rates as it comes, without waiting for `lr_update_interval`."""
        return False

    def before_step(self) -> None:
        """Look at the gradients and the parameters before an optimizer step, which may yet be skipped."""

    def after_step(self) -> None:
        """Take note that the step was made."""

    def observe(
        self, drift: Mapping[str, float], factors: Mapping[str, float], loss: float, answers: float = 0.0
    ) -> None:
        """Take note of a measurement.

        Args:
            drift: Module to its drift in nats; a module without a gradient is left out.
            factors: Module to what its learning rate was over its initial base rate.
            loss: Of the samples measured, in nats.
            answers: Answer tokens in the step's batch, on all processes; 0 where that is not known.
        """

    def multipliers(self, step: int, kappas: Mapping[str, float], measurements: Mapping[str, int]) -> dict[str, float]:
        """One multiplier per module; zero leaves the module untouched by the optimizer.

        Args:
            step: Finished optimizer steps.
            kappas: Encoder to its smoothed kappa; NaN before the first measurement.
            measurements: Encoder to how many of them its moving average is over.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""

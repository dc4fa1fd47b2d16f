"""What every controller of learning rates is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from commit_tuning.config import CoMMITConfig
from commit_tuning.measure.balance import RatioWindow, load_states, push_kappas, state_of
from commit_tuning.measure.probe import Measurement
from commit_tuning.partition.modules import LANGUAGE_MODEL


class Controller:
    """What turns measurements into multipliers of the base learning rates; this one leaves every rate as it is.

    A new strategy is one class with `observe` and `multipliers`, listed in `commit_tuning.methods`. One that looks at
    every optimizer step, measured or not, has the methods of `LooksAtSteps` as well.

    Args:
        modules: Names of the modules.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        self._modules = tuple(modules)

    @property
    def starting(self) -> bool:
        """Whether it waits for its first measurement, which is to be taken as soon as can be."""
        return False

    @property
    def settling(self) -> bool:
        """Whether every measurement is to set the rates as it comes, without waiting for `lr_update_interval`."""
        return False

    def observe(self, measurement: Measurement, in_force: Mapping[str, float]) -> None:
        """Take note of a measurement.

        Args:
            measurement: Drifts of the modules with a gradient, loss and target tokens.
            in_force: Module to what its learning rate was over its initial base rate.
        """

    def multipliers(self, step: int) -> dict[str, float]:
        """One multiplier per module; zero leaves the module untouched by the optimizer.

        Args:
            step: Finished optimizer steps.
        """
        del step
        return dict.fromkeys(self._modules, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""


@runtime_checkable
class LooksAtSteps(Protocol):
    """A controller that looks at every optimizer step."""

    def before_step(self) -> None:
        """Look at the gradients and the parameters before an optimizer step, which may yet be skipped."""
        ...

    def after_step(self) -> None:
        """Take note that the step was made."""
        ...


class KappaController(Controller):
    """Keeps the moving average of every encoder's kappa.

    Args:
        config: Gives the window and its estimator.
        encoders: Names of the feature encoders.
    """

    def __init__(self, config: CoMMITConfig, encoders: Sequence[str]) -> None:
        super().__init__((LANGUAGE_MODEL, *encoders))
        self._config = config
        self._windows = {name: RatioWindow(config.kappa_window, config.kappa_estimator) for name in encoders}

    def observe(self, measurement: Measurement, in_force: Mapping[str, float]) -> None:
        """Keep kappa of every encoder that was measured."""
        push_kappas(self._windows, self._counted(measurement, in_force), measurement.samples)

    def _counted(self, measurement: Measurement, in_force: Mapping[str, float]) -> Mapping[str, float]:
        """The drifts that go into the windows."""
        del in_force
        return measurement.drift

    def state_dict(self) -> dict[str, Any]:
        """The measurements in the windows."""
        return {"windows": state_of(self._windows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        load_states(self._windows, state["windows"])

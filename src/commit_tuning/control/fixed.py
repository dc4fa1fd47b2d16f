"""The same multipliers for ever."""

from __future__ import annotations

from collections.abc import Mapping

from commit_tuning.control.base import Controller


class FixedController(Controller):
    """The same multipliers for ever: Language LR up, Encoder LR up.

    Args:
        fixed: Module to its multiplier.
    """

    def __init__(self, fixed: Mapping[str, float]) -> None:
        super().__init__(fixed)
        self._fixed = dict(fixed)

    def multipliers(self, step: int) -> dict[str, float]:
        """The fixed multipliers."""
        del step
        return dict(self._fixed)

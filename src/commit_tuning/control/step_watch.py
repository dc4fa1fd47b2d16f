"""How the optimizer's own step is seen, whoever calls it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

_HANDLES = "_commit_hooks"


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer itself, out of Accelerate's wrapper or not in one."""
    return getattr(optimizer, "optimizer", optimizer)


class StepWatch:
    """Calls one method when an optimizer's step begins and another when it has ended, as long as their object lives.

    The newest watch takes the place of the one before; an optimizer that has no hooks is left alone.

    Args:
        optimizer: In Accelerate's wrapper or not.
        begins: Called with the optimizer before a step, after all other hooks that are known by then.
        ended: Called with the optimizer after a step that has raised no error.
    """

    def __init__(self, optimizer: Any, begins: Callable[[Any], None], ended: Callable[[Any], None]) -> None:
        self._optimizer = inner_optimizer(optimizer)
        self._begins, self._ended = _weakly(begins), _weakly(ended)
        self._handles: dict[str, Any] = {}
        if hasattr(self._optimizer, "register_step_pre_hook"):
            for handle in vars(self._optimizer).get(_HANDLES, {}).values():
                handle.remove()
            setattr(self._optimizer, _HANDLES, self._handles)
            self._handles["post"] = self._optimizer.register_step_post_hook(self._ended)
            self.go_last()

    def go_last(self) -> None:
        """Come after the hooks that were registered since; not to be called while a step begins."""
        if vars(self._optimizer).get(_HANDLES) is not self._handles:
            return
        if "pre" in self._handles:
            self._handles["pre"].remove()
        self._handles["pre"] = self._optimizer.register_step_pre_hook(self._begins)


def _weakly(method: Callable[[Any], None]) -> Callable[..., None]:
    reference = weakref.WeakMethod(method)

    def hook(stepping: Any, *_: Any) -> None:
        alive = reference()
        if alive is not None:
            alive(stepping)

    return hook

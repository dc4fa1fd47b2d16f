"""How the optimizer's own step is seen, whoever calls it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer itself, out of Accelerate's wrapper or not in one."""
    return getattr(optimizer, "optimizer", optimizer)


def look_before_steps(optimizer: Any, look: Callable[[Any], None]) -> None:
    """Before every step of an optimizer, call a method with it, for as long as the method's object lives.

    The newest method takes the place of the one before; an optimizer that has no hooks is left alone.
    """
    inner = inner_optimizer(optimizer)
    if not hasattr(inner, "register_step_pre_hook"):
        return
    previous = getattr(inner, "_commit_guard", None)
    if previous is not None:
        previous.remove()
    reference = weakref.WeakMethod(look)

    def hook(stepping: Any, *_: Any) -> None:
        alive = reference()
        if alive is not None:
            alive(stepping)

    inner._commit_guard = inner.register_step_pre_hook(hook)

"""How the optimizer's own step is seen, whoever calls it, and what becomes of gradients around it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from commit_tuning.distributed import local_shard

_HANDLES, _REPLACED = "_commit_hooks", "_commit_hooks_replaced"
_TRAINERS = {"accelerate", "lightning", "lightning_fabric", "pytorch_lightning"}  # whose wrappers only pass a step on


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer itself, out of a trainer's wrapper or not in one; a wrapper that steps its own way stays whole."""
    packages = {kind.__module__.partition(".")[0] for kind in type(optimizer).__mro__}
    return getattr(optimizer, "optimizer", optimizer) if packages & _TRAINERS else optimizer


def calls_hooks(optimizer: Any) -> bool:
    """Whether an optimizer calls the hooks of its step: torch's do, a wrapper need not."""
    step = getattr(type(optimizer), "step", None)
    return hasattr(optimizer, "_optimizer_step_pre_hooks") and hasattr(step, "hooked")


def unscale(optimizer: Any) -> bool:
    """Divide the gradients by the loss scale where that is left to a step: Accelerate's, or a fused optimizer's.

    Returns:
        Whether `scale_again` has something to undo, should Accelerate's step not be made.
    """
    inner = inner_optimizer(optimizer)
    scale, scaler = getattr(inner, "grad_scale", None), getattr(optimizer, "scaler", None)
    if isinstance(scale, Tensor):
        for gradient in _gradients_of(inner):
            gradient.div_(scale.to(gradient.device))
        inner.grad_scale = None
    elif inner is not optimizer and scaler is not None:
        try:
            scaler.unscale_(inner)
        except RuntimeError as error:
            if "already been called" not in str(error):  # by a loop that clips
                raise
        else:
            return True
    return False


def scale_again(optimizer: Any, late: bool) -> None:
    """Undo `unscale`: a scaler that believes its gradients unscaled would leave the next ones as they are.

    Args:
        optimizer: In Accelerate's wrapper.
        late: The gradients are those of another backward pass.
    """
    scale = optimizer.scaler.get_scale()
    for gradient in () if late else _gradients_of(optimizer):
        gradient.mul_(scale)
    optimizer.scaler.update(scale)


def _gradients_of(optimizer: Any) -> list[Tensor]:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return [local_shard(p.grad) for p in parameters if p.grad is not None]


class GradientWatch:
    """Sees that a gradient is dropped: nothing, or zeros, are there when the next one arrives, or at the end.

    Another tensor in its place is no sign of it: a loop may divide it, and DDP may put a view of its bucket there.

    Args:
        parameter: It has a gradient.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter, self._seen = parameter, _mark(parameter.grad)
        self._dropped: bool | None = None
        self._handle: Any = parameter.register_hook(self._arrives)  # type: ignore[no-untyped-call]

    def end(self) -> bool:
        """Whether the gradient was dropped; the watch is over."""
        self._handle.remove()
        return self._is_gone() if self._dropped is None else self._dropped

    def _arrives(self, gradient: Tensor) -> None:
        del gradient
        self._dropped = self._dropped or self._is_gone()

    def _is_gone(self) -> bool:
        """Looks at the values, for which it waits for the device, only if the tensor was changed or replaced."""
        found = self._parameter.grad
        return found is None or not (_mark(found) == self._seen or bool(local_shard(found).any()))


def _mark(gradient: Any) -> tuple[int, int]:
    """What changes when a tensor is replaced, or changed in place."""
    return id(gradient), gradient._version


class StepWatch:
    """Sees an optimizer's own step, as long as this object lives.

    The newest watch takes the place of the one before; an optimizer that calls no hooks is left alone.

    Args:
        optimizer: In a trainer's wrapper or not.
        begins: Called when a step begins, after all other hooks that are known by then.
        replaced: Called with True when a newer watch takes the place of this one.

    Attributes:
        overflowed: Whether the last step was left out by a fused optimizer, whose gradients have overflowed.
    """

    def __init__(self, optimizer: Any, begins: Callable[[], None], replaced: Callable[[bool], None]) -> None:
        self.overflowed = False
        self._depth = 0  # of calls to the optimizer's step, which may call that of the class that it derives from
        self._optimizer, self._begins = inner_optimizer(optimizer), weakref.WeakMethod(begins)
        self._handles: dict[str, Any] = {}
        if calls_hooks(self._optimizer):
            for handle in vars(self._optimizer).get(_HANDLES, {}).values():
                handle.remove()
            vars(self._optimizer).get(_REPLACED, bool)(True)
            setattr(self._optimizer, _HANDLES, self._handles)
            setattr(self._optimizer, _REPLACED, _weakly(replaced))
            self._handles["post"] = self._optimizer.register_step_post_hook(_weakly(self._step_ended))
            self.go_last()

    @property
    def inside(self) -> bool:
        """Whether a step has begun and not ended, perhaps by an error."""
        return self._depth > 0

    def reset(self) -> None:
        """No step has begun."""
        self._depth = 0

    def go_last(self) -> None:
        """Come after the hooks that were registered since; not to be called while a step begins."""
        if getattr(self._optimizer, _HANDLES, None) is not self._handles:
            return
        if "pre" in self._handles:
            self._handles["pre"].remove()
        self._handles["pre"] = self._optimizer.register_step_pre_hook(_weakly(self._step_begins))

    def _step_begins(self, optimizer: Any) -> None:
        found = getattr(optimizer, "found_inf", None)  # which a scaler gives to a fused optimizer, for it to skip
        self.overflowed = found is not None and bool(found)
        self._depth += 1
        begins = self._begins()
        if self._depth == 1 and begins is not None:
            begins()

    def _step_ended(self, optimizer: Any) -> None:
        del optimizer
        self._depth = max(0, self._depth - 1)  # zero where a hook of this step has reset it already


def _weakly(method: Callable[[Any], None]) -> Callable[..., None]:
    reference = weakref.WeakMethod(method)

    def hook(stepping: Any, *_: Any) -> None:
        alive = reference()
        if alive is not None:
            alive(stepping)

    return hook

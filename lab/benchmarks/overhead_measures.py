"""How `overhead.py` measures: steps taken in turn, work counted, a measured step taken apart, peak memory."""

import contextlib
import gc
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from overhead_subjects import Loop, Subject
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from commit_tuning import CoMMITConfig
from commit_tuning.config import Probe
from commit_tuning.errors import ConfigError
from commit_tuning.measure import probe as probing

NEVER = 10**6
EVERY, SELDOM = CoMMITConfig(probe=Probe(interval=1)), CoMMITConfig(probe=Probe(interval=NEVER))
SETTLED = 3  # steps until the probe knows its noise and kernels are warm
TIERS = ("thorough", "light")  # beside the default
Rounds = list[dict[str, list[Any]]]


def clock(device: torch.device) -> Callable[[], float]:
    """Processor time of this process, or wall time of a device that works by itself."""
    if device.type == "cpu":
        return time.process_time

    def now() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return now


def tiers() -> dict[str, CoMMITConfig]:
    """The named cost tiers that there are."""
    found = {}
    for name in TIERS:
        with contextlib.suppress(ConfigError):
            found[name] = CoMMITConfig(probe=name)  # type: ignore[arg-type]
    return found


def alternate(subject: Subject, configs: Mapping[str, CoMMITConfig | None], rounds: int) -> Rounds:
    """Train every arm for so many steps, one step of each in turn, and begin with another one every time.

    Returns:
        For each round, arm to seconds of its step and whether it was measured.
    """
    loops = {name: subject.loop(config) for name, config in configs.items()}
    now, names, found = clock(subject.device), list(loops), []
    gc.collect()
    gc.freeze()
    for number in range(rounds):
        turn = number % len(names)
        one = {}
        for name in (*names[turn:], *names[:turn]):
            started = now()
            loops[name].step()
            one[name] = [round(now() - started, 6), loops[name].measured]
        found.append(one)
    return found


class _Vocabulary(TorchDispatchMode):
    """Counts the numbers of a vocabulary's rows that operations make or, where they make none, read.

    Args:
        size: Of the vocabulary.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size, self.touched = size, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let the operation run, and count."""
        del types
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            made = self._largest(result)
            reads = "mm" not in str(function)  # a matrix product reads weights whose rows are as long
            self.touched += made or (self._largest((args, kwargs)) if reads else 0)
        return result

    def _largest(self, values: Any) -> int:
        """The numbers in the largest tensor of rows as long as the vocabulary."""
        found = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.ndim > 1]
        return max((tensor.numel() for tensor in found if tensor.shape[-1] == self._size), default=0)


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    del args, out_shape, kwargs
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    del args, kwargs
    return sdpa_backward_flop_count(gradient, query, key, value)


_ON_THE_CPU = {  # which torch's counter does not know
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class _NoModules(contextlib.AbstractContextManager):  # type: ignore[type-arg]
    """Stands in for what tells a counter in which module it is: the real one fails without gradients."""

    parents = frozenset(("Global",))

    def __exit__(self, *_: Any) -> None:
        """Do nothing."""


def counts(subject: Subject) -> dict[str, dict[str, int]]:
    """Floating-point operations and touched logits of a plain step, a measured one and one that is not measured."""
    vocabulary = subject.facts()["vocabulary"]
    return {
        name: _count(subject.loop(config), vocabulary)
        for name, config in (("plain", None), ("measured", EVERY), ("unmeasured", SELDOM))
    }


def _count(loop: Loop, vocabulary: int) -> dict[str, int]:
    for _ in range(SETTLED):
        loop.step()
    passes, operations = _Vocabulary(vocabulary), FlopCounterMode(display=False, custom_mapping=_ON_THE_CPU)
    operations.mod_tracker = _NoModules()  # type: ignore[assignment]
    with operations, passes:
        loop.step()
    return {"flop": int(operations.get_total_flops()), "vocabulary": passes.touched}


class _Stopwatches:
    """Time inside functions, without that inside others of them.

    Args:
        now: A clock.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._running = now, ["rest"]
        self._since = now()
        self.seconds: Counter[str] = Counter()

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time a part."""
        self._turn()
        self._running.append(part)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def _turn(self) -> None:
        moment = self._now()
        self.seconds[self._running[-1]] += moment - self._since
        self._since = moment


_PARTS: dict[str, Any] = {  # what is not there any more counts as the rest
    "forward pass for P_t": (probing.DriftProbe, "_observe"),
    "moved {}": (probing.DriftProbe, "_moved_logits"),
    "divergence": (probing, "token_kl"),
    "divergence in forward mode": (probing, "quadratic_drift"),
    "rounding": (probing.DriftProbe, "_rounding"),
    "loss": (probing.DriftProbe, "_loss"),
}


def profile(subject: Subject, steps: int) -> dict[str, float]:
    """Part of a measured step's extra time to its mean seconds; the parts are private functions of the probe."""
    loop, now = subject.loop(EVERY), clock(subject.device)
    for _ in range(SETTLED):
        loop.step()
    assert loop.coordinator is not None
    watch = _Stopwatches(now)
    with contextlib.ExitStack() as stack:
        for part, (owner, name) in _PARTS.items():
            if hasattr(owner, name):
                stack.enter_context(mock.patch.object(owner, name, _timed(getattr(owner, name), part, watch)))
        for name in ("before_step", "after_step"):
            function = getattr(loop.coordinator, name)
            stack.enter_context(
                mock.patch.object(loop.coordinator, name, _timed(function, "copies and the rest", watch))
            )
        for _ in range(steps):
            loop.step()
    return {part: seconds / steps for part, seconds in watch.seconds.items() if part != "rest"}


def _timed(function: Callable[..., Any], part: str, watch: _Stopwatches) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        moved = next((value for value in args if isinstance(value, str)), "")
        with watch(part.format(moved.replace("_", " "))):
            return function(*args, **kwargs)

    return timed


def peak_memory(subject: Subject, config: CoMMITConfig | None, steps: int) -> float:
    """Largest resident memory of this process in MiB, or of the device, after some steps."""
    loop = subject.loop(config)
    for _ in range(steps):
        loop.step()
    if subject.device.type != "cpu":
        return float(torch.accelerator.max_memory_allocated() / 2**20)
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20

"""A frozen tower whose outputs are computed once: what it made of a picture or sound is kept on the disk."""

from __future__ import annotations

import functools
import hashlib
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from commit_tuning.distributed import refuse_unsupported
from commit_tuning.errors import UserError
from commit_tuning.features.shelf import ENDING, Shelf
from commit_tuning.partition.discover import ENCODER_OF_MODALITY, multimodal_base

LIMIT = 20 * 10**9
"""Most bytes of a folder, if nobody says how many."""

_CLOSE = 64  # roundings by which a kept value may differ from one computed in another batch


class FrozenFeatures:
    """Keeps the outputs of a model's frozen towers on the disk, and gives them instead of running the tower.

    An output is found by what goes into the tower, to the last bit, so whatever loads, orders or batches the data needs
    no change: any trainer, evaluation and the measurement take it. The projector still runs. A kept output is of the
    same weights, settings, number format, size of batch and versions. A batch of which a row is missing is computed as
    a whole. A tower that trains, draws random numbers (dropout), or takes anything else than rows, runs as ever. A copy
    of the model that is made meanwhile runs the towers of this one, and weights must not change through `.data`.

    Args:
        model: A transformers model, wrapped or not.
        folder: Where outputs are kept; several processes may share it. One of them writes.
        limit: Most bytes of the folder.

    Attributes:
        taken: Rows that were taken from the disk.
        computed: Rows that a tower has computed.

    Raises:
        UserError: No tower of the model is frozen, or its parameters lie in parts on several processes.

    Example:
        Any training loop goes inside::

            with FrozenFeatures(model, "features"):
                trainer.train()
    """

    def __init__(self, model: nn.Module, folder: str | Path, limit: int = LIMIT) -> None:
        refuse_unsupported(model, None)
        frozen = [tower for tower in _towers(model) if not _trains(tower)]
        if not frozen:
            raise UserError(
                "no tower of the model is frozen, so its outputs change with each step: nothing can be kept"
            )
        self._kept = [_KeptTower(tower, Path(folder), limit) for tower in frozen]

    @property
    def taken(self) -> int:
        """Rows that were taken from the disk."""
        return sum(kept.taken for kept in self._kept)

    @property
    def computed(self) -> int:
        """Rows that a tower has computed."""
        return sum(kept.computed for kept in self._kept)

    def close(self) -> None:
        """Leave the model as it was."""
        for kept in self._kept:
            kept.close()

    def __enter__(self) -> Self:
        """Begin, which it has already."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave the model as it was."""
        self.close()


@dataclass(frozen=True)
class _Form:
    """What an output consists of, but for the values: its tensors' places, number formats and shapes of a row."""

    spec: TreeSpec
    tensors: tuple[tuple[int, torch.dtype, torch.Size], ...]

    @classmethod
    def of(cls, output: Any, rows: int) -> _Form | None:
        """None where a part of the output is no row for each row of the input."""
        leaves, spec = tree_flatten(output)
        tensors = []
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == rows and not leaf.is_sparse:
                tensors.append((place, leaf.dtype, leaf.shape[1:]))
            elif leaf is not None:
                return None
        return cls(spec, tuple(tensors)) if tensors else None

    @property
    def sizes(self) -> list[int]:
        """Bytes of a row of each tensor."""
        return [dtype.itemsize * shape.numel() for _, dtype, shape in self.tensors]

    def rows(self, output: Any) -> list[bytes]:
        """The bytes of each row."""
        leaves, _ = tree_flatten(output)
        parts = [_bytes(leaves[place]) for place, _, _ in self.tensors]
        return [b"".join(part) for part in zip(*parts, strict=True)]

    def output(self, rows: Sequence[bytes], device: torch.device) -> Any:
        """An output of some rows."""
        raw = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(rows), -1)
        leaves: list[Tensor | None] = [None] * self.spec.num_leaves
        for (place, dtype, shape), part in zip(self.tensors, torch.split(raw, self.sizes, dim=1), strict=True):
            leaves[place] = (
                part.clone(memory_format=torch.contiguous_format).view(dtype).view(len(rows), *shape).to(device)
            )
        return tree_unflatten(leaves, self.spec)


class _KeptTower:
    """One tower, whose `forward` is replaced."""

    def __init__(self, tower: nn.Module, folder: Path, limit: int) -> None:
        self._tower, self._folder, self._limit = tower, folder, limit
        self._forward = tower.forward
        self._state: Any = None
        self._identity = b""
        self._shelves: dict[str, tuple[_Form, Shelf]] = {}
        self._refused: set[str] = set()
        self._varies: bool | None = None  # in training mode, once it has run in it
        self.taken = self.computed = 0

        @functools.wraps(self._forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._run(*args, **kwargs)

        self._wrapper = tower.forward = forward

    def close(self) -> None:
        """Run as before."""
        if vars(self._tower).get("forward") is not self._wrapper:
            return  # closed already, or replaced by somebody else since
        del self._tower.forward  # that of the class shows again
        if self._tower.forward != self._forward:
            self._tower.forward = self._forward  # somebody had replaced it before
        self._forget()

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        training = _in_training(self._tower)
        call = None if _trains(self._tower) or (training and self._varies) else _call(args, kwargs)
        if call is None or call in self._refused:
            return self._forward(*args, **kwargs)
        self._notice_weights()
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        keys = _keys(inputs)
        if call not in self._shelves or (training and self._varies is None):
            return self._first(call, keys, args, kwargs)
        form, shelf = self._shelves[call]
        found: list[bytes] = []
        for key in keys:
            content = shelf.get(key)
            if content is None:
                return self._all(form, shelf, keys, args, kwargs)
            found.append(content)
        self.taken += len(keys)
        return form.output(found, inputs[0].device)

    def _all(self, form: _Form, shelf: Shelf, keys: list[bytes], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute the whole batch, as a smaller one may be rounded in another way, and keep its rows."""
        output = self._compute(args, kwargs)
        if _Form.of(output, len(keys)) == form:
            shelf.add(zip(keys, form.rows(output), strict=True))
        return output

    def _first(self, call: str, keys: list[bytes], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute the first batch of its kind, whatever is kept: it shows the form, and whether what is kept fits."""
        output = self._compute(args, kwargs)
        form = _Form.of(output, len(keys))
        if form is None:
            self._refused.add(call)
        if form is None or (self._varies and _in_training(self._tower)):
            return output
        name = hashlib.sha256(self._identity + f"{call} {form.spec} {form.tensors}".encode()).hexdigest()
        path = self._folder / f"{name[:32]}{ENDING}"
        _, shelf = self._shelves.get(call) or (form, Shelf(path, sum(form.sizes), self._limit))
        rows = dict(zip(keys, form.rows(output), strict=True))
        if all(self._fits(form, row, shelf.get(key)) for key, row in rows.items()):
            self._shelves[call] = form, shelf
            shelf.add(rows.items())
        else:
            fault = "other features than the tower computes here, as of another processor; none of them is used"
            warnings.warn(f"{path} holds {fault}", stacklevel=2)
            self._refused.add(call)
        return output

    @staticmethod
    def _fits(form: _Form, row: bytes, kept: bytes | None) -> bool:
        """Whether a kept row is the computed one, but for the rounding of another batch."""
        if kept is None or kept == row:
            return True
        ours, theirs = (tree_flatten(form.output([one], torch.device("cpu")))[0] for one in (row, kept))
        for place, dtype, _ in form.tensors:
            near = _CLOSE * torch.finfo(dtype).eps * float(ours[place].abs().max()) if dtype.is_floating_point else 0.0
            if not torch.allclose(ours[place], theirs[place], rtol=0.0, atol=near, equal_nan=True):
                return False
        return True

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the tower, and see whether it does the same each time."""
        before = (self._random_states(), self._fingerprint()) if _in_training(self._tower) else None
        output = self._forward(*args, **kwargs)
        if before is not None:
            drawn, state = before
            same = drawn == self._random_states() and state == self._fingerprint()
            self._varies = not same
        self.computed += next(len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        return output

    def _random_states(self) -> list[Any]:
        """What changes when a random number is drawn, by torch, Python or NumPy."""
        states: list[Any] = [random.getstate(), torch.get_rng_state().numpy().tobytes()]
        if "numpy" in sys.modules:
            drawn = sys.modules["numpy"].random.get_state(legacy=False)
            states.append((drawn["state"]["key"].tobytes(), drawn["state"]["pos"], drawn["has_gauss"]))
        device = next(self._tower.parameters()).device
        if device.type in {"cuda", "mps", "xpu"}:
            states.append(torch.get_device_module(device).get_rng_state(device).numpy().tobytes())
        return states

    def _notice_weights(self) -> None:
        """Find out whose outputs these are, again where the weights were changed."""
        state = self._fingerprint()
        if state != self._state:
            self._forget()
            self._identity, self._state = _identity(self._tower), state

    def _fingerprint(self) -> list[tuple[int, int, int]]:
        """What changes when a weight is changed."""
        values = (*self._tower.parameters(), *self._tower.buffers())
        return [(id(value), value.data_ptr(), 0 if value.is_inference() else value._version) for value in values]

    def _forget(self) -> None:
        for _, shelf in self._shelves.values():
            shelf.close()
        self._shelves.clear()
        self._refused.clear()


def _towers(model: nn.Module) -> list[nn.Module]:
    base = multimodal_base(model)
    found = {id(tower): tower for modality in ENCODER_OF_MODALITY if (tower := base.get_encoder(modality)) is not base}
    return [tower for tower in found.values() if isinstance(tower, nn.Module)]


def _in_training(tower: nn.Module) -> bool:
    return any(module.training for module in tower.modules())


def _trains(tower: nn.Module) -> bool:
    """Whether outputs may change: a weight trains or lies in parts on several processes, or adapters can be off."""
    adapted = any(hasattr(module, "merged_adapters") for module in tower.modules())
    in_parts = ("_local_tensor", "ds_id")  # FSDP2, DeepSpeed ZeRO
    return adapted or any(p.requires_grad or any(hasattr(p, part) for part in in_parts) for p in tower.parameters())


def _identity(tower: nn.Module) -> bytes:
    """The SHA-256 of what a tower's outputs depend on beside its inputs."""
    import transformers

    config: Any = getattr(tower, "config", None)
    settings = config.to_json_string(use_diff=False) if hasattr(config, "to_json_string") else ""
    attention = getattr(config, "_attn_implementation", None)
    code = f"{type(tower)} {attention} {torch.__version__} {transformers.__version__} {settings}"
    digest = hashlib.sha256(code.encode())
    for name, value in (*tower.named_parameters(), *tower.named_buffers()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """What two calls have in common that differ in the values of their rows alone; None for one without rows.

    The number of rows and the kernels belong to it: they decide how matrix products are rounded.
    """
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    batch = max(tensors, key=lambda value: value.ndim, default=None)
    if batch is None or batch.ndim < 3 or not len(batch):
        return None
    kinds = []
    for name, value in (*enumerate(args), *sorted(kwargs.items())):
        if isinstance(value, Tensor):
            if not value.ndim or len(value) != len(batch) or value.requires_grad or value.is_sparse:
                return None
            kinds.append(f"{name}={value.dtype}{tuple(value.shape[1:])}")
        elif _is_plain(value):
            kinds.append(f"{name}={value!r}")
        else:
            return None
    device = batch.device.type
    cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    sdp: Any = torch.backends.cuda  # of the processor, too; the forward mode of a measurement takes other kernels
    kernels = (sdp.flash_sdp_enabled(), sdp.math_sdp_enabled(), sdp.mem_efficient_sdp_enabled())
    return f"{len(batch)} {device} {cast} {torch.get_float32_matmul_precision()} {kernels} {' '.join(kinds)}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _keys(inputs: Sequence[Tensor]) -> list[bytes]:
    """The SHA-256 of each row of some tensors together."""
    return [hashlib.sha256(b"".join(row)).digest() for row in zip(*map(_bytes, inputs), strict=True)]


def _bytes(values: Tensor) -> Iterator[bytes]:
    """The bytes of each row."""
    raw = values.detach().cpu().contiguous().view(len(values), -1).view(torch.uint8).numpy()
    return (row.tobytes() for row in raw)

"""Pictures as a perfect encoder would put them to the language model: in each slot the name and colour that lie there.

On these the language model learns to look things up in a picture (where is the heart, how many are there) before any
vision exists. From pixels alone it does not: after 1,000 steps on pictures, "where is" was still at chance.
"""

from __future__ import annotations

import random

import torch

from nano_pretraining.scenes import COLOURS, PICTURE_PX, Icon, Scene
from nano_pretraining.subject import Nano

_COLOUR_SHARE = 0.7
_PLACE_SCALE = 0.12
_NOISE = 0.03


class Symbols:
    """Slot vectors: the embedding of a name, that of a colour at a smaller scale, and a fixed code of the place."""

    def __init__(self, nano: Nano) -> None:
        self._nano = nano
        self._side = nano.slots_per_side
        self._names = {name: index for index, name in enumerate(nano.book.said)}
        self._colours = {name: index for index, name in enumerate(COLOURS)}
        self._places = _place_codes(self._side, nano.model.get_input_embeddings().embedding_dim)

    def lookup(self, scenes: list[Scene], chance: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
        """Name and colour number in each slot, -1 where there is none: int64, (batch, slots) each.

        The scenes are laid out anew, each icon somewhere in its cell.
        """
        found = torch.full((2, len(scenes), self._side**2), -1)
        for row, scene in enumerate(scenes):
            for icon in scene.icons:
                slots = _covered(icon, self._side, chance)
                found[0, row, slots] = self._names[str(icon.name)]
                found[1, row, slots] = self._colours[icon.colour]
        return found[0], found[1]

    def vectors(self, names: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
        """Return slot vectors, with gradients to the embeddings, of the :meth:`lookup` numbers: (batch, slots, width).

        A name of -100 (an icon outside the concepts) leaves colour and place.
        """
        nano, empty = self._nano, torch.zeros(1)
        name_rows = torch.cat([nano.embeddings_of(self._names), empty.expand(1, self._places.shape[1])])
        colour_rows = torch.cat([nano.embeddings_of(self._colours), empty.expand(1, self._places.shape[1])])
        return name_rows[names.clamp(min=-1)] + _COLOUR_SHARE * colour_rows[colours] + self._places

    def inputs(self, input_ids: torch.Tensor, vectors: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Return input embeddings of a batch with its pictures as symbols: (batch, length, width)."""
        embedded = self._nano.model.get_input_embeddings()(input_ids).clone()
        spare = vectors.new_zeros(len(vectors), self._nano.slots - vectors.shape[1], vectors.shape[2])
        filled = torch.cat([vectors, spare], 1)
        start = self._nano.before
        embedded[:, start : start + self._nano.slots] = filled + _NOISE * torch.randn(filled.shape, generator=rng)
        return embedded


def _covered(icon: Icon, side: int, chance: random.Random) -> list[int]:
    """Return the slots whose middle lies under an icon put somewhere in its cell, or under a thing on a page."""
    left, top, width, height = map(float, icon.cell)
    step = PICTURE_PX / side
    if icon.size is not None:
        size = chance.randint(*icon.size)
        left, top = left + chance.random() * max(0, width - size), top + chance.random() * max(0, height - size)
        width = height = float(size)
    margin = 0.1 * step
    columns = [c for c in range(side) if left - margin <= (c + 0.5) * step <= left + width + margin]
    rows = [r for r in range(side) if top - margin <= (r + 0.5) * step <= top + height + margin]
    return [row * side + column for row in rows for column in columns]


def _place_codes(side: int, width: int) -> torch.Tensor:
    """Return sines and cosines of row and column: (side * side, width)."""
    angles = torch.arange(side)[:, None] * (7.0 / side) * 2 ** (-torch.arange(width // 4) * 8 / width)
    line = torch.cat([angles.sin(), angles.cos()], 1)
    plane = torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], 2)
    return _PLACE_SCALE * plane.flatten(0, 1)

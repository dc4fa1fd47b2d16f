"""What a run is computed from: its data and its model, by checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from commit_tuning.errors import UserError
from commit_tuning.models.load import model_checksum
from commit_tuning.train.dataset import data_checksums, ensure_data
from commit_tuning.train.recipe.schema import Recipe
from commit_tuning.train.record import RunRecord


@dataclass(frozen=True)
class Origin:
    """The checksums of what a run is computed from.

    Attributes:
        data: Split to checksum.
        model: Of the weights before tuning.
    """

    data: Mapping[str, str]
    model: str

    @classmethod
    def of(cls, recipe: Recipe, root: Path | None = None) -> Origin:
        """Compute the checksums of what a recipe names, as it lies there now.

        Args:
            recipe: The experiment.
            root: Folder of its dataset, if that is known.

        Raises:
            UserError: The data or the model cannot be read.
        """
        return cls(data_checksums(root or ensure_data(recipe.data), recipe.data), model_checksum(recipe.model.name))

    @property
    def data_checksum(self) -> str:
        """One checksum over all splits."""
        return hashlib.sha256(json.dumps(self.data, sort_keys=True).encode()).hexdigest()

    def note(self, record: RunRecord) -> None:
        """Write the checksums into a record."""
        record.data, record.data_checksum, record.model = dict(self.data), self.data_checksum, self.model

    def differs(self, record: RunRecord) -> str | None:
        """What a run was computed from that is not there as it was, in a few words; None if all is."""
        if record.files is None:
            return "an older version, which noted nothing to check it by"
        splits = [split for split, checksum in self.data.items() if record.data.get(split) != checksum]
        if splits:
            return f"other data ({', '.join(splits)})"
        return None if record.model == self.model else f"another model than {record.recipe['model']['name']} is now"


def refuse_changed(record: RunRecord, present: Origin) -> None:
    """Make sure that a run was computed from what is there now.

    Raises:
        UserError: It was not.
    """
    differs = present.differs(record)
    if differs:
        raise UserError(
            f"the run in {record.folder} is of {differs}; bring that back, choose another --output, or give --force to "
            "start again"
        )

"""Which files of an output folder are ours: what no record of ours names is never overwritten and never removed."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from commit_tuning.errors import UserError
from commit_tuning.storage import explained, is_temporary, remove_temporary
from commit_tuning.train.checkpoint import remove_checkpoints
from commit_tuning.train.record import (
    CHECKPOINTS,
    COMPANIONS,
    HISTORY,
    RESULT_FOLDERS,
    RunRecord,
    is_result,
    leads_elsewhere,
)


def refuse_foreign(folder: Path, record: str, companions: Collection[str] = COMPANIONS) -> None:
    """Make sure that a folder without a record of ours holds nothing else either.

    Args:
        folder: Of the output.
        record: Name of the file that makes the folder ours.
        companions: Names of files and folders that may lie there.

    Raises:
        UserError: It holds something.
    """
    foreign = foreign_files(folder, companions)
    if foreign and not os.path.lexists(folder / record):  # what that is, its reader says
        raise UserError(
            f"{folder} holds files that no {record} names ({foreign[0]!r}, {len(foreign)} in all); choose another "
            "--output, or give --force to write beside them (none of them is touched)"
        )


def foreign_files(folder: Path, companions: Collection[str] = COMPANIONS) -> list[str]:
    """The names of what lies in a folder and is not ours by its name."""
    return sorted(path.name for path in folder.iterdir() if path.name not in companions and not is_temporary(path))


def refuse_taken(folder: Path, names: Iterable[str], ours: Collection[str]) -> None:
    """Make sure that nothing stands where files are to be written, unless it is ours.

    Args:
        folder: Of the output.
        names: Of the files, relative to it.
        ours: Names that a record of ours has.

    Raises:
        UserError: Something does.
    """
    for name in names:
        path = folder / name
        for above in (path.parent,) if path.parent != folder else ():
            if os.path.lexists(above) and (above.is_symlink() or not above.is_dir()):
                raise _taken(above)
        if os.path.lexists(path) and (name not in ours or path.is_dir()):
            raise _taken(path)


def start_over(record: RunRecord, before: RunRecord | None, names: Iterable[str], resumes: bool = False) -> None:
    """Take a folder for a run: store its record, which names all that it may write, and remove what `before` left.

    Args:
        record: Of the run that begins.
        before: Of the run that was there.
        names: Of the files that the run may write.
        resumes: The run goes on from a checkpoint, so that its checkpoints and its history stay.

    Raises:
        UserError: Something that is not ours stands where a file is to be written, or the folder cannot be written.
    """
    names, left = list(names), list((before and before.files) or ())
    others = [] if left else [CHECKPOINTS]  # where no run of ours has named its files, none has saved any
    refuse_taken(record.folder, [*names, *others], left)
    if not resumes:
        remove_checkpoints(record.folder)
    record.plan([*names, *left])
    remove_named(record, keep=(HISTORY,) if resumes else ())


def remove_named(record: RunRecord, keep: Collection[str] = ()) -> None:
    """Remove the files that a record names, but for some, and their folders if nothing else is in them.

    Raises:
        UserError: One cannot be removed.
    """
    places = [record.folder, *(record.folder / name for name in sorted((*RESULT_FOLDERS, CHECKPOINTS)))]
    with explained(record.folder):
        for name in record.files or ():
            path = record.folder / name
            above = name.rpartition("/")[0]
            if name not in keep and is_result(name) and not leads_elsewhere(record.folder, above) and not path.is_dir():
                path.unlink(missing_ok=True)
        for place in places:
            if place.is_dir() and not place.is_symlink():
                _tidy(place)


def _tidy(folder: Path) -> None:
    """Remove what a killed process left half-written, and a folder of results that is empty then."""
    remove_temporary(folder)
    if folder.name in RESULT_FOLDERS and not any(folder.iterdir()):
        folder.rmdir()


def _taken(path: Path) -> UserError:
    return UserError(f"{path} is there and no record of a run names it; move it away, or choose another --output")

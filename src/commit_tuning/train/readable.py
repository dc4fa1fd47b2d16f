"""Records as a report takes them: every field that it shows is checked, and a damaged file is named with its fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, RootModel, TypeAdapter, ValidationError, model_validator

from commit_tuning.errors import UserError
from commit_tuning.shown import visible_line
from commit_tuning.train.compare.table import Difference, difference_text
from commit_tuning.train.record import HISTORY, PREDICTIONS, RECORD, RunRecord

LARGEST = 1e100
"""Largest number that a report takes; training in float32 cannot make one as large."""

Text = InstanceOf[str]  # of any characters: pydantic's own `str` refuses halves of one
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Share = Annotated[float, Field(ge=0, le=1.001)]  # a mean may be rounded up
Count = Annotated[int, Field(ge=0, le=2**53)]


class _Shape(BaseModel):
    """Base of what is read: strict about types and numbers that are not finite; unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


_Read = TypeVar("_Read", bound=BaseModel)
_Result = TypeVar("_Result")


class _Scores(_Shape):
    accuracy: Share
    questions: Count
    by_kind: dict[Text, Share] = {}


class _Metrics(_Shape):
    val: _Scores | None = None
    test: _Scores | None = None
    train_loss: Number | None = None
    starving: dict[Text, Count] = {}


class _Model(_Shape):
    name: Text
    lora: dict[Text, Any] | None = None


class _Data(_Shape):
    dataset: Text


class _Train(_Shape):
    steps: Count
    learning_rate: Number
    encoder_learning_rate: Number | None = None


class _Method(_Shape):
    method: Text


class _Recipe(_Shape):
    model: _Model
    data: _Data
    train: _Train
    commit: _Method


class _Run(_Shape):
    """What a report shows of `run.json`."""

    recipe: _Recipe
    status: Text
    seed: int
    metrics: _Metrics
    error: Text | None
    data_checksum: Text | None
    parameters: dict[Text, Count]
    seconds: dict[Text, Number]
    versions: dict[Text, Any]
    hardware: dict[Text, Any]

    @model_validator(mode="after")
    def _complete_with_scores(self) -> Self:
        if self.status == "complete" and (self.metrics.val is None or self.metrics.test is None):
            raise ValueError("complete without scores")
        return self


class _Step(_Shape):
    """A line of `history.jsonl`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Text, Number | None]

    step: Count


class Answered(_Shape):
    """A line of `predictions.jsonl`; older runs have the truth alone for `answers`, and no `picture`."""

    id: Text
    kind: Text
    question: Text
    truth: Text
    answer: Text
    choices: list[Text] | None = None
    answers: Annotated[list[Text], Field(min_length=1)] | None = None
    picture: Text | None = None


class _Difference(_Shape):
    mean: Number
    low: Number | None
    high: Number | None
    seeds: Count


class ArmRow(_Shape):
    """What a report shows of an arm in `table.json`; of the screening, it has no use for the runs."""

    label: Text
    method: Text
    rates: Text
    chosen: bool
    test: Share | None = None
    test_sd: Number | None
    difference: _Difference | None
    validation: Number | None
    seeds: Count
    collapsed: Count
    failed: Count
    seconds: Number | None = None
    runs: list[Text]

    @property
    def interval(self) -> str:
        """The difference to the reference as text."""
        return difference_text(None if self.difference is None else Difference(**vars(self.difference)))


class Table(_Shape):
    """`table.json`."""

    rows: Annotated[list[ArmRow], Field(min_length=1)]
    screening: list[ArmRow] = []


class Manifest(_Shape):
    """`compare.json`; that of older versions notes no files."""

    status: Text
    versions: dict[Text, Any]
    files: dict[Text, Text] | None = None
    recipe: dict[Text, Any]
    compare: dict[Text, Any]
    axes: dict[Text, list[Any]] = {}
    failures: list[Text] = []


class Made(RootModel[list[Text]]):
    """`reproduce.json`: the files that a reproduction has written, by name."""


class Floors(_Shape):
    """`floors.json` of a reproduction."""

    untuned: Share | None
    blind: Share | None


_HISTORY = TypeAdapter(list[_Step])
_PREDICTIONS = TypeAdapter(list[Answered])


def read_json(path: Path, shape: type[_Read]) -> _Read:
    """Read a JSON file.

    Raises:
        UserError: It cannot be read, or holds something else.
    """
    return _checked(path, lambda: shape.model_validate(json.loads(path.read_text(encoding="utf-8"))))


def read_run(folder: Path) -> RunRecord:
    """Read a run of which every file that a report needs is as it should be.

    Raises:
        UserError: One is not.
    """
    record = RunRecord.read(folder)
    record.refuse_damage()
    _checked(folder / RECORD, lambda: _Run.model_validate(vars(record)))
    _checked(folder / HISTORY, lambda: _HISTORY.validate_python(record.history()))
    _checked(folder / PREDICTIONS, lambda: answered(record))
    return record


def read_runs(folders: Iterable[Path]) -> tuple[list[RunRecord], list[str]]:
    """Read some runs; returns those that can be shown, and a line for each that cannot."""
    records, left_out = [], []
    for folder in folders:
        try:
            records.append(read_run(folder))
        except UserError as error:
            left_out.append(str(error))
    return records, left_out


def answered(record: RunRecord) -> list[Answered]:
    """Read the test questions of a run with its answers."""
    return _PREDICTIONS.validate_python(record.predictions())


def _checked(path: Path, read: Callable[[], _Result]) -> _Result:
    """Read a file; every way in which that can fail becomes one line about the file."""
    try:
        return read()
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part)[:40] for part in fault["loc"])
        reason = f"{place}: {fault['msg']}" if place else fault["msg"]
    except RecursionError:
        reason = "nested too deeply"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"{path} is damaged ({visible_line(reason)}); remove it, or make it anew by the same command")

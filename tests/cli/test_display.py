"""What the command line prints is text: no markup, no control of the terminal, no character that cannot be printed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.console import Console

from commit_tuning.cli.app import main
from commit_tuning.cli.display import Display, say, show_table
from commit_tuning.cli.inspect import _print_table
from commit_tuning.shown import visible_line
from commit_tuning.train.compare.table import markdown_table

HOSTILE = [
    "[red]a[/red]",
    "[/]",
    "[link=http://a]b[/link]",
    ":smile:",
    "\x1b[2J",
    "a\nb",
    "\ud800",
    "\x9b31m",
    "<b>",
    "|",
]


@pytest.fixture(params=[True, False], ids=["terminal", "log"])
def printed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[], str]:
    """What was printed, on a terminal 400 columns wide and into a log."""
    if not request.param:
        return lambda: capsys.readouterr().out
    stream = io.StringIO()

    def terminal(**_: object) -> Console:
        return Console(file=stream, force_terminal=True, width=400, color_system=None)

    monkeypatch.setattr("rich.console.Console", terminal)
    return stream.getvalue


@pytest.mark.parametrize("text", HOSTILE)
def test_progress_shows_notes_as_text(text: str, printed: Callable[[], str]) -> None:
    with Display() as display:
        display(text, 1, 2, text)
    assert visible_line(text) in printed()


@pytest.mark.parametrize("text", HOSTILE)
def test_table_shows_cells_as_text(text: str, printed: Callable[[], str]) -> None:
    show_table(markdown_table(["a"], [[text]]))
    assert visible_line(text).replace("\\", "") in printed().replace("\\", "")


@pytest.mark.parametrize("text", HOSTILE)
def test_inspection_shows_faults_as_text(text: str, printed: Callable[[], str]) -> None:
    module = SimpleNamespace(
        name=text, trainable=1, frozen=0, unreachable=0, zero_gradient=0, without_optimizer=None
    )  # fmt: skip
    _print_table(SimpleNamespace(modules=[module], faults=[text], notes=[text]))
    assert printed().count(visible_line(text)) == 3


@pytest.mark.parametrize("text", HOSTILE)
def test_line_is_one_line_of_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(text)
    say(text, error=True)
    assert [*capsys.readouterr()] == [visible_line(text) + "\n"] * 2


@pytest.mark.parametrize("text", ["[red]a[/red]", "[/]", "a\x1b[2Jb", "\ud800"])
@pytest.mark.parametrize("command", [[], ["report"], ["train"], ["evaluate"]])
def test_error_shows_what_was_given_as_text(text: str, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main([*command, text, *(["-o", "/dev/null/out"] if command == ["train"] else [])])
    assert exited.value.code == 2
    said = capsys.readouterr().err
    assert visible_line(text) in said
    assert "\x1b[2J" not in said


def test_output_spells_what_its_encoding_lacks() -> None:
    code = "from commit_tuning.cli.display import say, spell_out; spell_out(); say('5 ± 1, κ')"
    ended = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "latin-1"}
    )
    assert ended.stdout == b"5 \xb1 1, \\u03ba\n"

"""`commit-lab reproduce`: a figure, needs, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_experiment import run

from commit_lab.cli.app import main
from commit_lab.reproduce import run as reproduction


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["table9"], "'table9' is no table or figure of the paper; choose of table1, table2, figure1,"),
        (["table1", "--scale", "huge"], "--scale: 'huge' is not one of nano, small, paper"),
        (["table1", "--rows", "blip2-macs"], "--rows: 'blip2-macs' is no row; choose of blip2, salmonn,"),
        (["figure2", "commit.kapa_window=3"], "did you mean commit.kappa_window?"),
        (["figure2", "--cluster-option", "partition=gpu"], "add --cluster slurm"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["reproduce", *arguments, "-o", tmp_path], main) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_a_figure_has_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduction, "figure1", lambda folder: f"drawn in {folder.name}\n")
    assert run(["reproduce", "figure1", "-o", tmp_path / "new"], main) == 0
    assert (tmp_path / "new" / "figure1.md").read_text("utf-8") == "drawn in new\n"
    assert "drawn in new" in capsys.readouterr().out


def test_paper_scale_without_gpu_prints_needs_and_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reproduce", "figure6", "--scale", "paper", "-o", tmp_path, "--data", "there"], main) == 0
    printed = capsys.readouterr().out
    assert (
        "18 runs, each on the GPUs below (576 GPU-hours if as long as the paper's); datasets in there/textvqa (8.1 GB)."
        in " ".join(printed.split())
    )
    assert "commit-lab reproduce figure6 --scale paper" in printed
    assert "3.74 billion" in printed
    assert not list(tmp_path.iterdir())


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"], main) == 0
    assert capsys.readouterr().out.startswith("commit-lab ")
    for command in ([], ["demo"], ["reproduce"], ["study"]):
        assert run([*command, "--help"], main) == 0
        assert "commit-lab" in capsys.readouterr().out

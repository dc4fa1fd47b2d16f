"""What `train`, `compare` and `evaluate` do with files that are there: nothing of a user's is lost or overwritten."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import interrupt_at
from small_experiment import make_experiment, run

from commit_tuning.train import training
from commit_tuning.train.checkpoint import Checkpoints
from commit_tuning.train.record import RunRecord, alone_in

FAST = ("train.steps=1", "data.val_limit=2", "data.test_limit=2", "eval.images=1")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def made(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made") / "run"
    assert run(["train", recipe, "-o", output, *FAST]) == 0
    return output


@pytest.fixture
def finished(made: Path, tmp_path: Path) -> Path:
    """A complete run with its weights, of this test's own."""
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture(scope="module")
def compared(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("compared") / "table"
    assert run(["compare", recipe, "-o", output, "-j", "1", *FAST]) == 0
    return output


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    """Another content of a file for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


@contextmanager
def moved(path: Path) -> Iterator[None]:
    """A file or folder that is not there for a while."""
    away = path.rename(path.with_name(f"{path.name}-away"))
    try:
        yield
    finally:
        if path.exists():
            shutil.rmtree(path)
        away.rename(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def question(recipe: Path, split: str) -> Path:
    """The first question of a split, as a JSON file."""
    return sorted((recipe.parent / "data" / "iconqa" / split).rglob("data.json"))[0]


def with_another_answer(path: Path) -> bytes:
    told = json.loads(path.read_bytes())
    return json.dumps(told | {"question": f"{told['question']} Really?"}).encode()


def test_train_refuses_a_folder_of_pictures(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    for name in ("images/cat.png", "predictions.jsonl", "photo.jpg"):
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    assert run(["train", recipe, "-o", tmp_path, *FAST]) == 2
    assert "give --force to write beside them" in error_line(capsys)
    assert contents(tmp_path) == before
    assert run(["train", recipe, "-o", tmp_path, "--force", *FAST]) == 2
    assert "predictions.jsonl is there and no record" in error_line(capsys)
    assert {name: content for name, content in contents(tmp_path).items() if content == b"mine"} == before


@pytest.mark.parametrize("more", [[], ["--force"]])
def test_checkpoints_of_others_are_kept(
    more: list[str], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints" / "step-001000").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-001000" / "model.bin").write_text("mine")
    assert run(["train", recipe, "-o", tmp_path, *FAST, *more]) == 2
    assert "checkpoints" in error_line(capsys)
    assert contents(tmp_path)["checkpoints/step-001000/model.bin"] == b"mine"


@pytest.mark.parametrize("setting", ["train.steps=1", "data.root=/no/such"])
def test_refused_starts_never_take_checkpoints_over(
    setting: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints" / "step-000500").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000500" / "model.bin").write_text("mine")
    before = contents(tmp_path)
    for more in (["--force", setting], ["--force", setting], ["--force"], []):
        assert run(["train", recipe, "-o", tmp_path, *FAST, *more]) == 2
        error_line(capsys)
        assert contents(tmp_path) == before | {".lock": b""}


def test_checkpoints_beside_an_early_failure_are_kept(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", recipe, "-o", tmp_path, *FAST, "data.root=/no/such"]) == 2
    assert RunRecord.read(tmp_path).status == "failed"
    (tmp_path / "checkpoints" / "step-000500").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000500" / "state.json").write_text('{"dict": []}')
    capsys.readouterr()
    assert run(["train", recipe, "-o", tmp_path, *FAST, "--force"]) == 2
    assert "checkpoints is there and no record" in error_line(capsys)
    assert (tmp_path / "checkpoints" / "step-000500" / "state.json").exists()


@pytest.mark.parametrize("older", [False, True])
def test_complete_run_removes_no_foreign_checkpoints(older: bool, recipe: Path, finished: Path) -> None:
    if older:
        record = json.loads((finished / "run.json").read_text())
        (finished / "run.json").write_text(json.dumps(record | {"files": None}))
    mine = finished / "checkpoints" / "step-000500"
    mine.mkdir(parents=True)
    (mine / ("state.json" if older else "model.bin")).write_text('{"dict": []}')
    before = contents(finished)
    assert run(["train", recipe, "-o", finished, *FAST]) == 0
    assert contents(finished) == before


def test_a_batch_is_no_larger_than_the_data(recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished)
    for settings in (["train.batch_size=25"], ["data.train_limit=3"], ["data.train_limit=3", "data.in_memory=true"]):
        assert run(["train", recipe, "-o", finished, "--force", *FAST, *settings]) == 2
        size, there = ("25", "24") if len(settings) == 1 and "25" in settings[0] else ("4", "3")
        assert f"train.batch_size is {size}, and there are {there} training questions" in error_line(capsys)
    assert contents(finished) == before


def test_read_error_is_not_reported_as_write_error(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/cat.png")

    monkeypatch.setattr("commit_tuning.train.training.accumulate_gradients", broken)
    assert run(["train", recipe, "-o", tmp_path, *FAST]) == 2
    assert error_line(capsys) == "commit-tuning: error: /data/cat.png: Input/output error; check the disk"


def test_a_half_written_adapter_does_not_stay(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel

    def cut(model: object, folder: Path) -> None:
        Path(folder).mkdir()
        (Path(folder) / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PeftModel, "save_pretrained", cut)
    assert run(["train", recipe, "-o", tmp_path, *FAST]) == 2
    assert f"cannot write {tmp_path}/adapter: no space left on device" in error_line(capsys)
    assert not [name for name in contents(tmp_path) if "adapter" in name]


def test_force_removes_what_the_record_names_only(recipe: Path, finished: Path) -> None:
    for name in ("images/cat.png", "notes.txt", "adapter/mine.bin"):
        (finished / name).write_text("mine")
    settings = [*FAST, "train.steps=2", "--no-save-weights", "eval.images=0"]
    assert run(["train", recipe, "-o", finished, "--force", *settings]) == 0
    record = RunRecord.read(finished)
    assert record.complete
    assert len(record.history()) == 2
    assert set(contents(finished)) == {
        *("images/cat.png", "notes.txt", "adapter/mine.bin"),
        *("run.json", "history.jsonl", "predictions.jsonl", ".lock"),
    }


@pytest.mark.parametrize("setting", ["model.name=/no/such", "data.root=/no/such", "model.freeze=[none.*]"])
def test_nothing_is_removed_before_a_run_can_start(
    recipe: Path, finished: Path, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished)
    assert run(["train", recipe, "-o", finished, "--force", *FAST, setting]) == 2
    error_line(capsys)
    assert contents(finished) == before


@pytest.mark.parametrize("name", ["history.jsonl", "predictions.jsonl", "tuned.safetensors", "images/0000.png"])
def test_damaged_complete_run_is_not_shown(
    recipe: Path, finished: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / name).write_bytes((finished / name).read_bytes()[:-20])
    before = contents(finished)
    assert run(["train", recipe, "-o", finished, *FAST]) == 2
    assert f"{name} is missing or not as the run wrote it" in error_line(capsys)
    assert contents(finished) == before
    assert run(["train", recipe, "-o", finished, "--force", *FAST]) == 0
    assert RunRecord.read(finished).complete


def test_changed_data_is_said_and_redone_by_force(
    recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = question(recipe, "val")
    before = contents(finished)
    with changed(path, with_another_answer(path)):
        assert run(["train", recipe, "-o", finished, *FAST]) == 2
        assert "is of other data (val)" in error_line(capsys)
        assert contents(finished) == before
        assert run(["train", recipe, "-o", finished, "--force", *FAST]) == 0
    assert RunRecord.read(finished).data["val"] != json.loads(before["run.json"])["data"]["val"]


def test_other_pixels_are_other_data(recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [question(recipe, "test").with_name("image.png"), question(recipe, "train").with_name("image.png")]
    with changed(pictures[0], pictures[1].read_bytes()):
        assert run(["train", recipe, "-o", finished, *FAST]) == 2
        assert "is of other data (test)" in error_line(capsys)
        assert run(["evaluate", finished]) == 0
        assert "not the questions of the run" in capsys.readouterr().out
    assert run(["evaluate", finished]) == 0
    assert "not the questions of the run" not in capsys.readouterr().out


def test_a_removed_question_is_other_data(recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with moved(question(recipe, "train").parent):
        assert run(["train", recipe, "-o", finished, *FAST]) == 2
    assert "is of other data (train)" in error_line(capsys)


def test_a_changed_model_is_said(recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = recipe.parent / "model" / "model.safetensors"
    content = weights.read_bytes()
    with changed(weights, content[:-1] + bytes([content[-1] ^ 1])):
        assert run(["train", recipe, "-o", finished, *FAST]) == 2
        assert "is of another model than" in error_line(capsys)
        assert run(["evaluate", finished]) == 2
        assert "is of another model than" in error_line(capsys)


def test_a_run_below_its_model_goes_on(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = shutil.copytree(recipe.parent / "model", tmp_path / "model")
    settings = [*FAST, f"model.name={model}", "train.steps=3", "train.checkpoint_interval=1"]
    with interrupt_at(2):
        assert run(["train", recipe, "-o", model / "out", *settings]) == 130
    capsys.readouterr()
    assert run(["train", recipe, "-o", model / "out", *settings]) == 0
    assert "goes on from the checkpoint" in capsys.readouterr().out
    assert run(["train", recipe, "-o", model, *settings, "--force"]) == 2
    assert "is the folder of the model; choose another --output" in error_line(capsys)


def test_one_run_at_a_time(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with alone_in(tmp_path):
        assert run(["train", recipe, "-o", tmp_path, *FAST]) == 2
    assert "another process is at work" in error_line(capsys)
    assert set(contents(tmp_path)) == {".lock"}


def test_unfinished_run_of_another_recipe_is_kept(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "accumulate_gradients", interrupt)
        assert run(["train", recipe, "-o", tmp_path, *FAST]) == 130
    error_line(capsys)
    before = contents(tmp_path)
    assert run(["train", recipe, "-o", tmp_path, *FAST, "train.steps=2"]) == 2
    assert "holds a begun run of another recipe (it differs in train.steps)" in error_line(capsys)
    assert contents(tmp_path) == before


def test_removed_weights_leave_the_numbers_of_a_run(
    recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "tuned.safetensors").unlink()
    shutil.rmtree(finished / "adapter")
    assert run(["train", recipe, "-o", finished, *FAST]) == 0
    assert "the weights of this run are not there any more (first: " in error_line(capsys)
    assert run(["report", finished]) == 0
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "Weights not there any more" in page
    assert "Left out" not in page
    capsys.readouterr()
    assert run(["evaluate", finished]) == 2
    assert "is not there any more" in error_line(capsys)


@pytest.mark.parametrize("missing", ["tuned.safetensors", "adapter/adapter_model.safetensors"])
def test_weights_that_lack_tensors_are_refused(
    finished: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(finished / missing)
    kept = sorted(tensors)[::2]
    save_file({name: tensors[name] for name in kept}, finished / missing)
    assert run(["evaluate", finished]) == 2
    assert f"{missing} is missing or not as the run wrote it" in error_line(capsys)
    record = json.loads((finished / "run.json").read_text())
    (finished / "run.json").write_text(json.dumps(record | {"files": None, "model": None}))
    assert run(["evaluate", finished]) == 2
    line = error_line(capsys)
    assert f"{missing} lacks " in line
    assert f"{len(tensors) - len(kept)} such in all" in line


@pytest.mark.parametrize("name", ["tuned.safetensors", "adapter/adapter_model.safetensors"])
def test_weights_that_are_cut_are_one_line(finished: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((finished / "run.json").read_text())
    (finished / "run.json").write_text(json.dumps(record | {"files": None}))
    (finished / name).write_bytes((finished / name).read_bytes()[:100])
    assert run(["evaluate", finished]) == 2
    assert f"{name} cannot be read" in error_line(capsys)


def test_older_run_is_shown_as_unchecked(recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((finished / "run.json").read_text())
    for key in ("files", "data", "model"):
        del record[key]
    (finished / "run.json").write_text(json.dumps(record))
    assert run(["train", recipe, "-o", finished, *FAST]) == 0
    assert "nothing of it could be checked" in error_line(capsys)
    assert run(["train", recipe, "-o", finished, *FAST, "--force"]) == 2
    assert "no record of a run names it" in error_line(capsys)


def test_hostile_ids_never_become_paths(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from commit_tuning.data.readers.base import Reader

    ids = {0: "../../../../victim", 1: "shop/12", 2: "x" * 300}
    read = Reader.__getitem__
    monkeypatch.setattr(
        Reader, "__getitem__", lambda self, index: replace(read(self, index), id=ids.get(index, str(index)))
    )
    output = tmp_path / "a" / "b"
    settings = [*FAST, "train.steps=3", "data.test_limit=3", "eval.images=3"]
    assert run(["train", recipe, "-o", output, *settings]) == 0
    rows = RunRecord.read(output).predictions()
    assert [row["id"] for row in rows] == list(ids.values())
    assert [row["picture"] for row in rows] == ["images/0000.png", "images/0001.png", "images/0002.png"]
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["0000.png", "0001.png", "0002.png"]
    assert run(["report", output]) == 0
    assert (output / "report.html").read_text(encoding="utf-8").count("data:image/png;base64,") == 3


@pytest.mark.parametrize("option", ["--predictions", "--skipped"])
def test_evaluate_overwrites_no_file(
    finished: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    assert run(["evaluate", finished, option, tmp_path / "thesis.txt"]) == 2
    assert "is there already; give another name, or --force" in error_line(capsys)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert run(["evaluate", finished, option, tmp_path / "folder"]) == 2
    assert "is no file: name one" in error_line(capsys)
    assert run(["evaluate", finished, option, tmp_path / "thesis.txt", "--force"]) == 0
    assert (tmp_path / "thesis.txt").read_text() != "mine"


@pytest.mark.parametrize("option", ["--predictions", "--skipped"])
def test_evaluate_leaves_hidden_files_alone(finished: Path, tmp_path: Path, option: str) -> None:
    (tmp_path / ".env").write_text("mine")
    assert run(["evaluate", finished, option, tmp_path / "env"]) == 0
    assert (tmp_path / ".env").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {".env", "env", "run"}


def test_full_disk_gives_one_line_and_failed_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fsync, calls = os.fsync, [0]

    def full_later(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_later)
    assert run(["train", recipe, "-o", tmp_path, *FAST]) == 2
    assert "no space left on device" in error_line(capsys)
    assert RunRecord.read(tmp_path).status != "complete"
    assert not [name for name in contents(tmp_path) if name.endswith(".tmp")]
    monkeypatch.undo()
    assert run(["train", recipe, "-o", tmp_path, *FAST]) == 0
    assert RunRecord.read(tmp_path).complete


def test_compare_refuses_a_folder_with_a_table(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.md").write_text("mine")
    assert run(["compare", recipe, "-o", tmp_path, *FAST]) == 2
    assert "give --force to write beside them" in error_line(capsys)
    assert run(["compare", recipe, "-o", tmp_path, *FAST, "--force"]) == 2
    assert "table.md is there and no record" in error_line(capsys)
    assert (tmp_path / "table.md").read_text() == "mine"


ENGINES = [["-j", "1"], ["--cluster", "local"]]


@pytest.mark.parametrize("engine", ENGINES)
def test_compare_does_not_mix_two_datasets(
    engine: list[str], recipe: Path, compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, path = contents(compared), question(recipe, "test")
    with changed(path, with_another_answer(path)):
        assert run(["compare", recipe, "-o", compared, *engine, *FAST, "compare.seeds=3"]) == 2
    assert "is of other data (test)" in error_line(capsys)
    assert contents(compared) == before


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["history.jsonl", "predictions.jsonl"])
def test_compare_refuses_a_cut_file(
    name: str, engine: list[str], recipe: Path, compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sorted(compared.rglob(name))[0]
    with changed(path, path.read_bytes()[:-9]):
        assert run(["compare", recipe, "-o", compared, *engine, *FAST]) == 2
    assert f"{name} is missing or not as the run wrote it" in error_line(capsys)


def test_compare_refuses_a_run_folder_with_other_files(
    recipe: Path, compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(compared, tmp_path / "table")
    sorted(folder.rglob("run.json"))[0].unlink()
    before = contents(folder)
    assert run(["compare", recipe, "-o", folder, "-j", "1", *FAST]) == 2
    assert "holds files that no run.json names" in error_line(capsys)
    assert contents(folder) == before


def test_compare_removes_what_a_killed_one_left(recipe: Path, compared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(compared, tmp_path / "table")
    runs = sorted(folder.glob("runs/*/seed-0"))
    (folder / ".table.md.7.commit-tuning.tmp").touch()
    (folder / ".mine.tmp").touch()
    (runs[0] / ".run.json.7.commit-tuning.tmp").touch()
    assert run(["compare", recipe, "-o", folder, "-j", "1", *FAST]) == 0
    assert [path.name for path in folder.rglob("*.tmp")] == [".mine.tmp"]


def test_compare_by_force_starts_again(recipe: Path, compared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(compared, tmp_path / "table")
    mine = sorted(folder.glob("runs/*/seed-0"))[0] / "notes.txt"
    mine.write_text("mine")
    assert run(["compare", recipe, "-o", folder, "-j", "1", *FAST, "train.seed=5", "train.steps=2", "--force"]) == 0
    assert mine.read_text() == "mine"
    assert {len(RunRecord.read(path.parent).history()) for path in folder.rglob("run.json")} == {2}


@pytest.mark.parametrize("content", ["mine", "{}", '{"recipe": {"flour": 1}, "compare": {}}'])
@pytest.mark.parametrize("more", [[], ["--force"]])
def test_compare_keeps_a_foreign_manifest(
    content: str, more: list[str], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("compare.json", "table.md", "table.json"):
        (tmp_path / name).write_text(content)
    before = contents(tmp_path)
    assert run(["compare", recipe, "-o", tmp_path, "-j", "1", *FAST, *more]) == 2
    assert "compare.json is damaged" in error_line(capsys)
    assert contents(tmp_path) == before | {".lock": b""}


def test_train_keeps_a_foreign_record(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text('{"recipe": {"flour": 1}}')
    assert run(["train", recipe, "-o", tmp_path, "--force", *FAST]) == 2
    assert "run.json is not a run record (it has no status)" in error_line(capsys)
    assert (tmp_path / "run.json").read_text() == '{"recipe": {"flour": 1}}'


@pytest.mark.parametrize("more", [[], ["--force"]])
def test_compare_keeps_an_edited_table(
    more: list[str], recipe: Path, compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(compared, tmp_path / "table")
    (folder / "table.md").write_text("mine")
    before = contents(folder)
    assert run(["compare", recipe, "-o", folder, "-j", "1", *FAST, *more]) == 2
    assert "table.md is there and no record" in error_line(capsys)
    assert contents(folder) == before


def test_compare_replaces_tables_of_an_older_version(recipe: Path, compared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(compared, tmp_path / "table")
    manifest = json.loads((folder / "compare.json").read_text())
    del manifest["files"]
    (folder / "compare.json").write_text(json.dumps(manifest))
    (folder / "table.md").write_text("of an older version")
    assert run(["compare", recipe, "-o", folder, "-j", "1", *FAST]) == 0
    assert (folder / "table.md").read_bytes() == (compared / "table.md").read_bytes()


def test_compare_by_force_removes_all_runs_or_none(
    recipe: Path, compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(compared, tmp_path / "table")
    last = sorted(folder.rglob("run.json"))[-1]
    last.write_text(json.dumps(json.loads(last.read_text()) | {"files": None}))
    before = contents(folder)
    assert run(["compare", recipe, "-o", folder, "-j", "1", *FAST, "--force"]) == 2
    assert "is of an older version and names no files" in error_line(capsys)
    assert contents(folder) == before


def test_compare_by_force_begins_interrupted_runs_anew(recipe: Path, compared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(compared, tmp_path / "table")
    for path in folder.rglob("run.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "running"}))
        Checkpoints(path.parent, {}, 1).save(1, {"steps": 1})
    assert run(["compare", recipe, "-o", folder, "-j", "1", *FAST, "train.steps=2", "--force"]) == 0
    assert {len(RunRecord.read(path.parent).history()) for path in folder.rglob("run.json")} == {2}
    assert not list(folder.rglob("checkpoints"))


@pytest.mark.parametrize("engine", ENGINES)
def test_compare_by_force_writes_beside_notes(engine: list[str], recipe: Path, compared: Path, tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_bytes((compared / "compare.json").read_bytes())
    notes = tmp_path / sorted(compared.glob("runs/*/seed-0"))[0].relative_to(compared) / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    assert run(["compare", recipe, "-o", tmp_path, *engine, *FAST, "--force"]) == 0
    assert notes.read_text() == "mine"

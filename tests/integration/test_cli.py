"""`commit-tuning train` from end to end, and how each mistake ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_experiment import make_experiment, run, write_llava

from commit_tuning import CoMMITConfig
from commit_tuning.errors import UserError
from commit_tuning.train import runner, training
from commit_tuning.train.evaluate import recipe_of_run
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.record import RunRecord, read_lines


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of CoMMIT-CLR with its weights."""
    output = tmp_path_factory.mktemp("runs") / "clr"
    assert run(["train", recipe, "-o", output]) == 0
    return output


def with_a_broken_picture(recipe: Path, folder: Path, split: str) -> Path:
    """A copy of the recipe's data in which a picture of a split is empty."""
    data = shutil.copytree(recipe.parent / "data", folder / "data")
    next((data / "iconqa" / split).rglob("image.png")).write_bytes(b"")
    return data


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What the command wrote to standard error, which has to be one line and no traceback."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("commit-tuning: ")
    return lines[0]


def test_a_run_leaves_a_full_record(finished: Path) -> None:
    record = RunRecord.read(finished)
    assert (record.status, record.seed, record.error) == ("complete", 0, None)
    assert record.recipe["commit"]["method"] == "commit-clr"
    assert (
        record.recipe["commit"]["controller"]["bound"] == CoMMITConfig().controller.bound
    )  # resolved, not only what the file says
    assert set(record.parameters) == {"language_model", "vision"}
    assert record.data_checksum is not None
    assert len(record.data_checksum) == 64
    assert record.metrics["val"]["questions"] == 6
    assert 0 < record.metrics["seen_loss"] != record.metrics["val_loss"] > 0
    assert set(record.metrics["test"]["by_kind"]) == {"choose_txt", "choose_img", "fill_in_blank"}
    assert record.metrics["overhead"] > 0
    assert record.versions["torch"]
    assert record.hardware["torch_threads"] >= 1


def test_the_history_is_flat_and_complete(finished: Path) -> None:
    history = RunRecord.read(finished).history()
    assert [row["step"] for row in history] == [1, 2, 3]
    keys = ("drift", "drift_scale", "noise_floor", "lr", "grad_norm", "step_norm", "theta_norm", "h", "starving")
    per_module = {f"{key}/{m}" for key in keys for m in ("language_model", "vision")}
    for row in history:
        assert {"step", "loss", "grad_norm", "kappa", "smoothed_kappa"} | per_module == set(row)
        assert all(value is None or isinstance(value, int | float) for value in row.values())
    assert history[0]["kappa"] is not None
    losses = [row["loss"] for row in history]
    assert RunRecord.read(finished).metrics["train_loss"] == pytest.approx(sum(losses) / 3)  # type: ignore[arg-type]


def test_predictions_and_pictures(finished: Path) -> None:
    rows = RunRecord.read(finished).predictions()
    assert len(rows) == 9
    assert {"id", "kind", "question", "choices", "truth", "answers", "answer", "picture"} == set(rows[0])
    assert [row["picture"] for row in rows] == [f"images/000{number}.png" for number in range(3)] + [None] * 6
    assert sorted(path.name for path in (finished / "images").iterdir()) == ["0000.png", "0001.png", "0002.png"]


def test_weights_load_into_the_model_they_came_from(finished: Path, recipe: Path) -> None:
    import warnings

    import peft
    from safetensors.torch import load_file

    from commit_tuning.models.load import load_model

    base, _ = load_model(recipe.parent / "model")
    before = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    tuned = load_file(finished / "tuned.safetensors")
    assert set(tuned) <= set(before)
    assert any(not tuned[name].equal(before[name]) for name in tuned)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        adapted = peft.PeftModel.from_pretrained(base, finished / "adapter")
    adapters = [parameter for name, parameter in adapted.named_parameters() if ".lora_B" in name]
    assert any(parameter.abs().sum() > 0 for parameter in adapters)


def test_seed_fixes_start_and_batches_of_every_method(finished: Path, recipe: Path, tmp_path: Path) -> None:
    assert run(["train", recipe, "-o", tmp_path / "c", "commit.method=constant", "--no-save-weights"]) == 0
    assert run(["train", recipe, "-o", tmp_path / "s", "train.seed=1", "--no-save-weights"]) == 0
    ours, constant, other = (RunRecord.read(folder).history() for folder in (finished, tmp_path / "c", tmp_path / "s"))
    assert ours[0]["loss"] == constant[0]["loss"]  # nothing has been coordinated before the first step
    assert ours[0]["loss"] != other[0]["loss"]
    assert not (tmp_path / "c" / "adapter").exists()


def test_complete_run_is_kept_another_recipe_refused(
    finished: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "history.jsonl").stat().st_mtime_ns
    assert run(["train", recipe, "-o", finished]) == 0
    assert (finished / "history.jsonl").stat().st_mtime_ns == before
    capsys.readouterr()
    assert run(["train", recipe, "-o", finished, "train.steps=4"]) == 2
    assert "another recipe" in error_line(capsys)


def test_an_interrupted_run_does_not_look_finished(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "accumulate_gradients", interrupt)
        assert run(["train", recipe, "-o", tmp_path / "run"]) == 130
    assert "interrupted" in error_line(capsys)
    assert RunRecord.read(tmp_path / "run").status == "running"
    assert run(["train", recipe, "-o", tmp_path / "run"]) == 0
    assert RunRecord.read(tmp_path / "run").complete


def test_nonfinite_loss_stops_the_run(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["train.learning_rate=1e30", "commit.method=constant", "commit.probe.interval=null"]
    assert run(["train", recipe, "-o", tmp_path, *settings, "train.max_grad_norm=null"]) == 1
    line = error_line(capsys)
    assert "at step 2 of 3" in line
    assert "lower train.learning_rate" in line
    record = RunRecord.read(tmp_path)
    assert record.status == "failed"
    assert record.error is not None
    assert len(record.history()) == 1
    assert not (tmp_path / "predictions.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.yaml"], "no recipe 'none.yaml'"),
        (["train", "RECIPE", "train.optimizer=lion", "model.name=/nowhere/at/all"], "'lion' is not one of adamw"),
        (["train", "RECIPE", "train.stesp=1"], "did you mean train.steps?"),
        (["train", "RECIPE", "commit.method=comit"], "'comit' is not one of constant"),
        (["train", "RECIPE", "model.name=/no/such/model"], "/no/such/model"),
        (["train", "RECIPE", "model.lora.target_modules=[qkv]"], "no linear layer 'qkv'"),
        (["train", "RECIPE", "model.freeze=[none.*]"], "fits no parameter"),
        (["train", "RECIPE", "train.device=tpu"], "train.device 'tpu'"),
        (["train", "RECIPE", "data.root=nowhere"], "nowhere"),
        (["train", "RECIPE", "data.root=~no-such-user/x"], "no home folder of that user"),
        (["train", "RECIPE", "--zzz"], "No such option...--zzz...; see commit-tuning train --help"),  # quotes differ
        (["compare", "RECIPE", "--methods", "comit"], "'comit' is not one of constant"),
        (["compare", "RECIPE", "--axis", "commit.kapa=1,2"], "commit.kapa"),
        (["compare", "RECIPE", "--axis", "commit.kappa_window"], "write it as key=v1,v2"),
    ],
)
def test_mistake_gives_one_line_and_exit_code_2(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    words = [str(recipe) if word == "RECIPE" else word for word in arguments]
    assert run([*words, "--output", tmp_path / "out"]) == 2
    line = error_line(capsys)
    assert all(part in line for part in message.split("..."))


@pytest.mark.parametrize("command", ["train", "compare"])
def test_an_output_that_cannot_be_written(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "file").touch()
    assert run([command, recipe, "-o", tmp_path / "file" / "run"]) == 2
    assert "cannot write to" in error_line(capsys)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_without_permission(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert run(["train", recipe, "-o", tmp_path / "run"]) == 2
    assert "cannot write to" in error_line(capsys)


def test_report_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", tmp_path]) == 2
    assert "no run.json" in error_line(capsys)


def test_report_of_a_single_run_stands_alone(finished: Path) -> None:
    assert run(["report", finished]) == 0
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert "Balance coefficient" in page
    assert "One seed." in page
    for remote in ("<script", "<link", 'src="http', "@import"):
        assert remote not in page


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("commit-tuning ")
    for command in ([], ["train"], ["compare"], ["report"], ["inspect"]):
        assert run([*command, "--help"]) == 0
        assert "commit-tuning" in capsys.readouterr().out


def test_a_word_that_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trian"]) == 2
    assert "trian" in capsys.readouterr().err


def test_a_missing_library_is_named() -> None:
    code = "import sys; sys.modules['typer'] = None; from commit_tuning.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == ("commit-tuning: error: the command line needs typer; pip install 'commit-tuning[train]'\n")


def test_the_command_line_imports_nothing_heavy_by_itself() -> None:
    heavy = ("transformers", "peft", "matplotlib", "scipy")
    code = f"import commit_tuning.cli.app, json, sys; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(found.stdout) == []


def test_a_finished_run_answers_again_as_it_did(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.jsonl"
    assert run(["evaluate", finished, "--predictions", answers]) == 0
    accuracy = RunRecord.read(finished).accuracy("test")
    assert f"iconqa, test: accuracy {100 * accuracy:.1f} % of 9" in capsys.readouterr().out
    asked = [row for row in RunRecord.read(finished).predictions() if row.pop("picture", "") != ""]
    assert read_lines(answers) == asked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "dev"], "no split 'dev'"),
        (["--predictions", "."], "is no file: name one"),
        (["--predictions", os.devnull], "is no file: name one"),
        (["--predictions", "x" * 260], "file name too long"),
        (["--predictions", "both.jsonl", "--skipped", "both.jsonl"], "name the same file"),
        (["data.dataset=textvqa", "data.root=null"], "data.root is missing"),
        (["data.dataset=vqa"], "is not one of iconqa"),
    ],
)
def test_what_evaluate_cannot_do(
    words: list[str], message: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", finished, *words]) == 2
    assert message in error_line(capsys)


def test_weights_of_another_model_are_not_evaluated(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_llava(tmp_path / "other", seed=1)
    assert run(["evaluate", finished, f"model.name={tmp_path / 'other'}"]) == 2
    assert "is of another model" in error_line(capsys)


def test_evaluate_checks_that_predictions_can_be_written(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["evaluate", finished, "--predictions", tmp_path / "file" / "answers.jsonl"]) == 2
    assert "cannot write to" in error_line(capsys)
    assert run(["evaluate", finished, "--predictions", tmp_path / "new" / "answers.jsonl"]) == 0
    assert (tmp_path / "new" / "answers.jsonl").is_file()


def test_another_dataset_has_answers_of_its_own_length(finished: Path) -> None:
    own, other, chosen = (
        recipe_of_run(finished, settings).generation().max_new_tokens
        for settings in (
            [],
            ["data.dataset=macs", "data.root=there"],
            ["data.dataset=macs", "data.root=there", "eval.max_new_tokens=7"],
        )
    )
    assert (own, other, chosen) == (2, 64, 7)


def test_failed_evaluation_keeps_weights_and_skipped_samples(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    data = with_a_broken_picture(recipe, tmp_path, "train")
    monkeypatch.setattr(runner, "answer_questions", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.train(load_recipe(str(recipe), [f"data.root={data}"]), tmp_path / "out")
    assert list((tmp_path / "out").rglob("*.safetensors"))
    record = RunRecord.read(tmp_path / "out")
    assert record.status == "failed"
    assert record.skipped.keys() == {"train"}
    assert record.skipped["train"].startswith("1, first ")
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["split"] == "train"
    assert json.loads(line)["reason"].startswith("image.png is not a whole picture")


def test_strict_a_broken_picture_stops_a_run(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = with_a_broken_picture(recipe, tmp_path, "train")
    assert run(["train", recipe, f"data.root={data}", "data.strict=true", "-o", tmp_path / "out"]) == 2
    assert "repair it, or read without strict to skip it" in error_line(capsys)


def test_evaluate_counts_and_lists_what_it_skips(
    recipe: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = with_a_broken_picture(recipe, tmp_path, "test")
    assert run(["evaluate", finished, f"data.root={data}", "--skipped", tmp_path / "skipped.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "% of 8" in said
    assert "skipped 1 that cannot be read, first: " in said
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line).keys() == {"path", "line", "reason"}


def test_unavailable_metric_stops_the_run_before_training(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(metric: str) -> None:
        raise UserError(f"{metric} needs a package")

    monkeypatch.setattr(runner, "check_metric", missing)
    with pytest.raises(UserError, match="iconqa needs a package"):
        runner.train(load_recipe(str(recipe)), tmp_path / "out")
    assert not (tmp_path / "out" / "history.jsonl").exists()


def test_a_run_without_weights_cannot_be_evaluated(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", recipe, "-o", tmp_path, "--no-save-weights", "train.steps=1"]) == 0
    capsys.readouterr()
    assert run(["evaluate", tmp_path]) == 2
    assert "train.save_weights=true" in error_line(capsys)


def test_kept_features_change_no_run(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frozen = ["model.freeze=[model.vision_tower.*]", "train.steps=8", "eval.images=0"]
    assert run(["train", recipe, "-o", tmp_path / "plain", *frozen]) == 0
    kept = [f"data.cache_features={tmp_path / 'features'}", "data.cache_gigabytes=0.01"]
    for name in ("first", "second"):
        assert run(["train", recipe, "-o", tmp_path / name, *frozen, *kept]) == 0
        for file in ("history.jsonl", "predictions.jsonl", "tuned.safetensors"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
    assert list((tmp_path / "features").glob("*.commit-tuning-rows"))
    assert RunRecord.read(tmp_path / "second").recipe == RunRecord.read(tmp_path / "plain").recipe
    capsys.readouterr()
    assert run(["train", recipe, "-o", tmp_path / "trained", *kept]) == 2
    assert "data.cache_features: no tower of the model is frozen" in error_line(capsys)

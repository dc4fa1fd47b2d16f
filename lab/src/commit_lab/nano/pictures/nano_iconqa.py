"""Nano-IconQA: a small instruction-tuning task in the folder layout of IconQA, built from open icon fonts.

Layout, as in the official release (Lu et al., NeurIPS 2021)::

    root/iconqa/{train,val,test}/{choose_txt,choose_img,fill_in_blank}/<id>/image.png
                                                                          /data.json
                                                                          /choice_0.png ...  (choose_img only)
    root/pid_splits.json      {"choose_txt_train": ["1", ...], ..., "train": [...], ...}
    root/problems.json        {"1": {"question": ..., "choices": ..., "answer": ..., "ques_type": ..., ...}, ...}
    root/MANIFEST.json        counts, seed, versions and checksum; written last
"""

from __future__ import annotations

from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from commit_lab.nano.building import build, cache_dir, in_splits, recipe_of, write_json
from commit_lab.nano.pictures.icons import concepts
from commit_lab.nano.pictures.nano_questions import Question, make_question, nano_vocabulary

__all__ = ["build_nano_iconqa", "default_nano_iconqa_root", "nano_vocabulary"]

FORMAT = 1
_Problems = dict[str, dict[str, Any]]


def build_nano_iconqa(
    root: str | Path, *, train: int = 6000, val: int = 900, test: int = 1500, seed: int = 0, workers: int = 1
) -> Path:
    """Write Nano-IconQA, unless the same dataset lies there complete.

    The same arguments give the same files whatever the number of workers; a folder that exists is complete.

    Args:
        root: Folder to create.
        train: Number of training questions (icons of the Remix, Codicons and Elusive families).
        val: Number of validation questions (Font Awesome).
        test: Number of test questions (Phosphor).
        seed: Seed of all chance.
        workers: Number of processes. With more than one, call it under ``if __name__ == "__main__"``.

    Returns:
        ``root`` as a path.

    Raises:
        UserError: A count is not positive, ``root`` holds something else, or QtAwesome is not installed.
    """
    recipe = recipe_of("Nano-IconQA", FORMAT, seed, {"train": train, "val": val, "test": test}, workers)
    return build(root, "Nano-IconQA", recipe, partial(_write, recipe, workers))


def _write(recipe: dict[str, Any], workers: int, root: Path) -> dict[str, Any]:
    made = in_splits(partial(_write_entry, str(root), recipe["seed"]), recipe["counts"], workers)
    problems = {pid: problem for entries in made.values() for pid, problem in entries}
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", _pid_splits(problems))
    versions = {name: metadata.version(name) for name in ("qtawesome", "pillow")}
    return {"concepts": list(concepts()), "versions": versions}


def _write_entry(root: str, seed: int, split: str, number: int, pid: int) -> tuple[str, dict[str, Any]]:
    """Write a question; returns its id and problem."""
    question = make_question(seed, split, number)
    folder = Path(root, "iconqa", split, question.kind, str(pid))
    return folder.name, _write_question(folder, question) | {"split": split}


def _write_question(folder: Path, question: Question) -> dict[str, Any]:
    folder.mkdir(parents=True)
    question.picture.save(folder / "image.png", compress_level=1)
    names = [f"choice_{index}.png" for index in range(len(question.choice_pictures))]
    for name, picture in zip(names, question.choice_pictures, strict=True):
        picture.save(folder / name, compress_level=1)
    record: dict[str, Any] = {"question": question.question, "answer": question.answer, "ques_type": question.kind}
    if question.choices is not None:
        record["choices"] = names or list(question.choices)
    record |= {"grade": "nano", "label": question.label}
    write_json(folder / "data.json", record)
    return record


def _pid_splits(problems: _Problems) -> dict[str, list[str]]:
    """Return ids by split, and by kind and split, as the official scripts look them up."""
    ids: dict[str, list[str]] = {}
    for pid, problem in problems.items():
        for key in (problem["split"], f"{problem['ques_type']}_{problem['split']}"):
            ids.setdefault(key, []).append(pid)
    return ids


def default_nano_iconqa_root(*, workers: int = 1) -> Path:
    """Return the folder of the default Nano-IconQA (6000 + 900 + 1500 questions, seed 0); the first use builds it."""
    return build_nano_iconqa(cache_dir() / f"nano-iconqa-v{FORMAT}", workers=workers)

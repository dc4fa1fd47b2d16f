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

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from commit_tuning.data.icons import concepts
from commit_tuning.data.nano_questions import Question, make_question, nano_vocabulary
from commit_tuning.errors import UserError

__all__ = ["build_nano_iconqa", "cache_dir", "dataset_checksum", "default_nano_root", "nano_vocabulary"]

SPLITS = ("train", "val", "test")
FORMAT = 1
MANIFEST = "MANIFEST.json"
_CHUNK = 100
_Problems = dict[str, dict[str, Any]]
_Chunk = tuple[str, int, range]  # split, id of its first question, numbers within it


def build_nano_iconqa(
    root: str | Path, *, train: int = 6000, val: int = 900, test: int = 1500, seed: int = 0, workers: int = 1
) -> Path:
    """Write Nano-IconQA, unless the same dataset lies there complete.

    The same arguments give the same files whatever the number of workers. Everything is written to a temporary
    folder beside ``root`` and renamed at the end, so a folder that exists is complete.

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
    root = Path(root)
    recipe = {"format": FORMAT, "seed": seed, "counts": {"train": train, "val": val, "test": test}}
    if min(train, val, test, workers) < 1:
        raise UserError("Nano-IconQA needs at least 1 question per split and 1 worker: train, val, test, workers >= 1")
    if _is_complete(root, recipe):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    partial_root = Path(mkdtemp(prefix=f".{root.name}-", suffix=".partial", dir=root.parent))
    try:
        _write(partial_root, recipe, workers)
        _move(partial_root, root, recipe)
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)
    return root


def _is_complete(root: Path, recipe: dict[str, Any]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        manifest = json.loads((root / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{root} exists and is no Nano-IconQA dataset: choose another folder or empty it") from None
    found = {key: manifest.get(key) for key in recipe}
    if found != recipe or manifest.get("status") != "complete":
        raise UserError(f"{root} holds another Nano-IconQA ({found}, wanted {recipe}): choose another folder")
    return True


def _move(source: Path, root: Path, recipe: dict[str, Any]) -> None:
    source.chmod(0o755)
    try:
        if root.is_dir():
            root.rmdir()  # empty, or taken meanwhile
        source.rename(root)
    except OSError:
        if not _is_complete(root, recipe):  # another process was not first either
            raise


def _write(root: Path, recipe: dict[str, Any], workers: int) -> None:
    counts: dict[str, int] = recipe["counts"]
    task = partial(_write_chunk, str(root), recipe["seed"])
    first, chunks = 1, []
    for split, count in counts.items():
        chunks += [(split, first, range(start, min(start + _CHUNK, count))) for start in range(0, count, _CHUNK)]
        first += count
    problems = {pid: problem for written in _map(task, chunks, workers) for pid, problem in written.items()}
    _write_json(root / "problems.json", problems)
    _write_json(root / "pid_splits.json", _pid_splits(problems))
    _write_json(root / MANIFEST, {"status": "complete", **recipe, **_provenance(), "sha256": dataset_checksum(root)})


def _map(task: partial[_Problems], chunks: list[_Chunk], workers: int) -> Iterable[_Problems]:
    if workers == 1 or len(chunks) == 1:
        return map(task, chunks)
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=get_context("spawn")) as pool:
        return list(pool.map(task, chunks))


def _write_chunk(root: str, seed: int, chunk: _Chunk) -> _Problems:
    """Write some questions of a split; returns their problems by id."""
    split, first, numbers = chunk
    problems = {}
    for number in numbers:
        question = make_question(seed, split, number)
        folder = Path(root, "iconqa", split, question.kind, str(first + number))
        problems[folder.name] = _write_question(folder, question) | {"split": split}
    return problems


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
    _write_json(folder / "data.json", record)
    return record


def _pid_splits(problems: _Problems) -> dict[str, list[str]]:
    """Ids by split, and by kind and split, as the official scripts look them up."""
    ids: dict[str, list[str]] = {}
    for pid, problem in problems.items():
        for key in (problem["split"], f"{problem['ques_type']}_{problem['split']}"):
            ids.setdefault(key, []).append(pid)
    return ids


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _provenance() -> dict[str, Any]:
    return {
        "concepts": list(concepts()),
        "versions": {name: metadata.version(name) for name in ("qtawesome", "pillow")},
    }


def dataset_checksum(root: str | Path) -> str:
    """SHA-256 of what a dataset says, whatever the image encoder: sorted paths, JSON text and decoded pixels.

    Args:
        root: Folder of a dataset; the manifest itself is left out.

    Returns:
        64 hexadecimal digits.

    Raises:
        UserError: There is no dataset.
    """
    from PIL import Image

    root = Path(root)
    files = sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*") if path.is_file())
    if not files:
        raise UserError(f"{root} holds no dataset: build one with build_nano_iconqa")
    digest = hashlib.sha256()
    for name, path in files:
        if path.suffix == ".png":
            with Image.open(path) as image:
                content = f"{image.mode} {image.size}".encode() + image.tobytes()
        elif name != MANIFEST:
            content = path.read_bytes()
        else:
            continue
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def cache_dir() -> Path:
    """Folder for what the package builds: $COMMIT_TUNING_CACHE, or ``commit-tuning`` in the platform's cache folder."""
    import platformdirs

    chosen = os.environ.get("COMMIT_TUNING_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("commit-tuning", appauthor=False)


def default_nano_root(*, workers: int = 1) -> Path:
    """Folder of the default Nano-IconQA (6000 + 900 + 1500 questions, seed 0); built on first use."""
    return build_nano_iconqa(cache_dir() / f"nano-iconqa-v{FORMAT}", workers=workers)

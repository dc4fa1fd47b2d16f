"""Nano-TextVQA: a small reading task in the layout of TextVQA, built from open fonts and icon fonts.

Layout, as in the official release (Singh et al., CVPR 2019, version 0.5.1)::

    root/TextVQA_0.5.1_{train,val,test}.json   {"dataset_type": ..., "data": [{"question": ..., "answers": [...], ...}]}
    root/train_images/<image_id>.jpg           (of train and val)
    root/test_images/<image_id>.jpg
    root/MANIFEST.json                         counts, seed, versions and checksum; written last

Unlike the official ones, the answers of test are there. ``label`` names the form of a question.
"""

from __future__ import annotations

import hashlib
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from commit_lab.nano.building import build, cache_dir, in_splits, recipe_of, write_json
from commit_lab.nano.pictures.lettering import SPLIT_FONTS
from commit_lab.nano.pictures.nano_text_questions import TextQuestion, make_text_question, nano_textvqa_vocabulary

__all__ = ["build_nano_textvqa", "default_nano_textvqa_root", "nano_textvqa_vocabulary"]

FORMAT = 1
_FOLDERS = {"train": "train_images", "val": "train_images", "test": "test_images"}


def build_nano_textvqa(
    root: str | Path, *, train: int = 6000, val: int = 600, test: int = 1200, seed: int = 0, workers: int = 1
) -> Path:
    """Write Nano-TextVQA, unless the same dataset lies there complete.

    The same arguments give the same files whatever the number of workers; a folder that exists is complete.

    Args:
        root: Folder to create.
        train: Number of training questions (Computer Modern; icons of the Remix, Codicons and Elusive families).
        val: Number of validation questions (Aileron; Font Awesome).
        test: Number of test questions (STIX; Phosphor).
        seed: Seed of all chance.
        workers: Number of processes. With more than one, call it under ``if __name__ == "__main__"``.

    Returns:
        ``root`` as a path.

    Raises:
        UserError: A count is not positive, ``root`` holds something else, or QtAwesome or matplotlib is not installed.
    """
    recipe = recipe_of("Nano-TextVQA", FORMAT, seed, {"train": train, "val": val, "test": test}, workers)
    return build(root, "Nano-TextVQA", recipe, partial(_write, recipe, workers))


def _write(recipe: dict[str, Any], workers: int, root: Path) -> dict[str, Any]:
    for folder in sorted(set(_FOLDERS.values())):
        (root / folder).mkdir()
    made = in_splits(partial(_write_entry, str(root), recipe["seed"]), recipe["counts"], workers)
    for split, entries in made.items():
        about = {"dataset_type": split, "dataset_name": "nano-textvqa", "dataset_version": "0.5.1"}
        write_json(root / f"TextVQA_0.5.1_{split}.json", about | {"data": entries})
    versions = {name: metadata.version(name) for name in ("matplotlib", "pillow", "qtawesome")}
    return {"fonts": SPLIT_FONTS, "versions": versions}


def _write_entry(root: str, seed: int, split: str, number: int, question_id: int) -> dict[str, Any]:
    """Write a question's picture; returns its entry."""
    question = make_text_question(seed, split, number)
    image_id = hashlib.sha256(f"{seed}:{split}:{number}".encode()).hexdigest()[:16]
    question.picture.save(Path(root, _FOLDERS[split], f"{image_id}.jpg"), quality=95, subsampling=0)
    return _entry(question) | {"question_id": question_id, "image_id": image_id, "set_name": split}


def _entry(question: TextQuestion) -> dict[str, Any]:
    width, height = question.picture.size
    return {
        "question": question.question,
        "question_tokens": question.question.lower().rstrip("?").split(),
        "answers": list(question.answers),
        "image_width": width,
        "image_height": height,
        "image_classes": list(question.shown),
        "label": question.label,
    }


def default_nano_textvqa_root(*, workers: int = 1) -> Path:
    """Return the folder of the default Nano-TextVQA (6000 + 600 + 1200 questions, seed 0); the first use builds it."""
    return build_nano_textvqa(cache_dir() / f"nano-textvqa-v{FORMAT}", workers=workers)

"""Nano-A-OKVQA: a small task of knowledge in the layout of A-OKVQA, built from icon fonts and a table of facts.

Layout, as in the official release (Schwenk et al., ECCV 2022, version 1.0)::

    root/aokvqa_v1p0_{train,val,test}.json     [{"question_id": ..., "image_id": ..., "question": ..., ...}]
    root/{train,val,test}2017/<image_id of 12 digits>.jpg
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
from commit_lab.nano.pictures.facts import HELD_OUT
from commit_lab.nano.pictures.nano_fact_questions import FactQuestion, make_fact_question, nano_aokvqa_vocabulary

__all__ = ["build_nano_aokvqa", "default_nano_aokvqa_root", "nano_aokvqa_vocabulary"]

FORMAT = 1


def build_nano_aokvqa(
    root: str | Path, *, train: int = 6000, val: int = 600, test: int = 1200, seed: int = 0, workers: int = 1
) -> Path:
    """Write Nano-A-OKVQA, unless the same dataset lies there complete.

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
    recipe = recipe_of("Nano-A-OKVQA", FORMAT, seed, {"train": train, "val": val, "test": test}, workers)
    return build(root, "Nano-A-OKVQA", recipe, partial(_write, recipe, workers))


def _write(recipe: dict[str, Any], workers: int, root: Path) -> dict[str, Any]:
    for split in recipe["counts"]:
        (root / f"{split}2017").mkdir()
    made = in_splits(partial(_write_entry, str(root), recipe["seed"]), recipe["counts"], workers)
    for split, entries in made.items():
        write_json(root / f"aokvqa_v1p0_{split}.json", entries)
    versions = {name: metadata.version(name) for name in ("pillow", "qtawesome")}
    return {"held_out": sorted(map(list, HELD_OUT)), "versions": versions}


def _write_entry(root: str, seed: int, split: str, number: int, image_id: int) -> dict[str, Any]:
    """Write a question's picture; returns its entry."""
    question = make_fact_question(seed, split, number)
    question.picture.save(Path(root, f"{split}2017", f"{image_id:012d}.jpg"), quality=95, subsampling=0)
    question_id = hashlib.sha256(f"{seed}:{split}:{number}".encode()).hexdigest()[:22]
    return {"split": split, "image_id": image_id, "question_id": question_id} | _entry(question)


def _entry(question: FactQuestion) -> dict[str, Any]:
    return {
        "question": question.question,
        "choices": list(question.choices),
        "correct_choice_idx": question.right,
        "direct_answers": list(question.answers),
        "difficult_direct_answer": question.hard,
        "rationales": list(question.rationales),
        "label": question.label,
    }


def default_nano_aokvqa_root(*, workers: int = 1) -> Path:
    """Return the folder of the default Nano-A-OKVQA (6000 + 600 + 1200 questions, seed 0); the first use builds it."""
    return build_nano_aokvqa(cache_dir() / f"nano-aokvqa-v{FORMAT}", workers=workers)

"""Pre-train a nano model from nothing on one core: ``python scripts/pretrain_nano.py nano-llava --output DIR``.

The same command gives the same weights on the same machine and versions (one thread, fixed seeds). Models of the
second generation (``nano-llava-v2``, ``nano-blip2-v2``, ``nano-internvl2``) learn to read, and facts, besides.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from nano_pretraining.forms import FORMS, WORDS
from nano_pretraining.lessons import LESSON_WORDS, LESSONS, vocabulary
from nano_pretraining.pages import PAGE_LAYOUTS, PAGES, Library
from nano_pretraining.reading import texts_read
from nano_pretraining.scenes import GlyphBook
from nano_pretraining.stages import LAYOUTS, measure, train_alignment, train_chatter, train_language, train_vision
from nano_pretraining.subject import Nano

from commit_tuning.data.nano_iconqa import nano_vocabulary
from commit_tuning.models.nano_build import BUILT, build_model, build_processor, build_tokenizer

STAGES = {  # stage: (function, steps of the first generation and of the second, batch, learning rate)
    "language": (train_language, (3000, 3500), 48, 2e-3),
    "vision": (train_vision, (2500, 6000), 48, 2e-3),
    "alignment": (train_alignment, (1500, 2000), 48, 2e-3),
    "chatter": (train_chatter, (800, 800), 48, 1e-3),
}
FIRST = ("nano-llava", "nano-blip2")  # icons alone, in the words of Nano-IconQA; later ones read, and know facts
PACKAGES = ("torch", "transformers", "tokenizers", "qtawesome", "pillow")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=BUILT)
    parser.add_argument("--output", type=Path, required=True, help="new folder for weights, tokenizer and record")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps of every stage")
    parser.add_argument("--glyphs", type=int, default=None, help="use this many glyphs only (for a quick trial)")
    parser.add_argument("--resume", type=Path, help="folder of an earlier run whose stages need not be done again")
    parser.add_argument("--until", choices=STAGES, default=list(STAGES)[-1], help="last stage to do")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the stages, measure, and write the folder."""
    options = parse(arguments)
    if options.output.exists():
        raise SystemExit(f"{options.output} exists: give a new folder")
    torch.set_num_threads(1)
    nano = _start(options)
    stages = {} if options.resume is None else _resume(options.resume, nano)
    nano.model.set_attn_implementation("eager")  # in bfloat16 on a CPU its backward is several times as fast as sdpa's

    wanted = list(STAGES)[: list(STAGES).index(options.until) + 1]
    for stage in [stage for stage in wanted if stage not in stages]:
        train, full, batch, lr = STAGES[stage]
        begun, steps = time.perf_counter(), max(1, round(full[options.name not in FIRST] * options.scale))
        loss = train(nano, steps, batch, lr, _logger(stage, begun))
        minutes = (time.perf_counter() - begun) / 60
        stages[stage] = {"steps": steps, "batch": batch, "lr": lr, "loss": round(loss, 4), "minutes": round(minutes, 2)}
    nano.model.set_attn_implementation("sdpa")
    answers = {form: round(share, 3) for form, share in measure(nano, max(50, round(2000 * options.scale))).items()}
    record = {**_describe(options, nano), "stages": stages, "answers_right_on_new_scenes": answers}
    if options.name not in FIRST:
        record["texts_read"] = texts_read(nano, max(12, round(500 * options.scale)))
    _write(options.output, nano, record)


def _start(options: argparse.Namespace) -> Nano:
    """The untrained model, and what its generation learns from."""
    first = options.name in FIRST
    tokenizer = build_tokenizer(nano_vocabulary([WORDS]) if first else vocabulary())
    processor = build_processor(options.name, tokenizer)
    pages = max(100, round(PAGES * min(1.0, options.scale)))
    book = GlyphBook(options.glyphs) if first else Library(options.glyphs, pages, seed=options.seed)
    lessons = (FORMS, WORDS) if first else (LESSONS, LESSON_WORDS)
    model = build_model(options.name, len(tokenizer), options.seed)
    return Nano(options.name, model, processor, book, options.seed, *lessons)


def _resume(folder: Path, nano: Nano) -> dict[str, dict[str, object]]:
    """Take over the weights of an earlier run; returns the record of its stages (each has its own chance)."""
    nano.model.load_state_dict(nano.model.from_pretrained(folder, dtype="float32").state_dict())
    stages: dict[str, dict[str, object]] = json.loads((folder / "PRETRAINING.json").read_text("utf-8"))["stages"]
    return stages


def _describe(options: argparse.Namespace, nano: Nano) -> dict[str, object]:
    """What was asked for, and with what: the first part of PRETRAINING.json."""
    changed = {"scale": options.scale if options.scale != 1 else None, "glyphs": options.glyphs}
    extra = "".join(f" --{key} {value}" for key, value in changed.items() if value is not None)
    return {
        "command": f"python scripts/pretrain_nano.py {options.name} --output DIR --seed {options.seed}{extra}",
        "seed": options.seed,
        "data": {
            "family": "mdi (Material Design Icons 5 and 6)",
            "glyphs": len(nano.book.glyphs),
            "drawings": nano.book.classes,
            "concepts": len(nano.book.names),
            "layouts": [*LAYOUTS, *([] if options.name in FIRST else PAGE_LAYOUTS)],
        },
        "parameters": sum(parameter.numel() for parameter in nano.model.parameters()),
        "vocabulary": len(nano.processor.tokenizer),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "machine": {"architecture": platform.machine(), "threads": torch.get_num_threads()},
    }


def _logger(stage: str, begun: float) -> Callable[[str], None]:
    return lambda text: print(f"{stage}: {text} ({time.perf_counter() - begun:.0f} s)", file=sys.stderr, flush=True)


def _write(output: Path, nano: Nano, record: dict[str, object]) -> None:
    """Write beside the output and rename, so that a half-written folder never has its name."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        folder = Path(scratch) / "model"
        nano.model.save_pretrained(folder)
        nano.processor.save_pretrained(folder)
        weights = folder / "model.safetensors"
        weights.chmod(0o644)
        record["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        (folder / "PRETRAINING.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        folder.rename(output)


if __name__ == "__main__":
    main()

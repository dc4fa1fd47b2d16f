"""Pre-train a nano model from nothing on one core: ``python lab/pretraining/pretrain_nano.py nano-llava --output DIR``.

The same command gives the same weights on the same machine and versions (one thread, fixed seeds). Models of the
second generation (``nano-llava-v2``, ``nano-blip2-v2``, ``nano-internvl2``) learn to read, and facts, besides;
``nano-salmonn`` learns from sounds.
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
from typing import TYPE_CHECKING, Any

import torch
from nano_pretraining import sound_stages, stages
from nano_pretraining.forms import WORDS
from nano_pretraining.lessons import LESSON_WORDS, LESSONS, vocabulary
from nano_pretraining.listener import Listener
from nano_pretraining.pages import PAGES, Library
from nano_pretraining.reading import texts_read
from nano_pretraining.scenes import GlyphBook
from nano_pretraining.sound_forms import WORDS as SOUND_WORDS
from nano_pretraining.sound_scenes import SoundBook
from nano_pretraining.subject import Nano
from nano_pretraining.towers import TOWERS

from commit_lab.nano.models.build import build_model, build_processor, build_tokenizer
from commit_lab.nano.models.salmonn import build_salmonn_tokenizer
from commit_lab.nano.pictures.nano_iconqa import nano_vocabulary
from commit_lab.nano.sounds.nano_clothoaqa import nano_clothoaqa_vocabulary
from commit_lab.nano.sounds.nano_macs import nano_macs_vocabulary
from commit_lab.nano.sounds.nano_songdescriber import nano_songdescriber_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Stage = tuple[Callable[[Any, int, int, float, Callable[[str], None]], float], int, int, float]
"""What trains it, and its steps, batch and learning rate."""


def _on_pictures(language: int, vision: int, alignment: int, chatter: int) -> dict[str, Stage]:
    """Return the stages of a model that sees, by their steps."""
    return {
        "language": (stages.train_language, language, 48, 2e-3),
        "vision": (stages.train_vision, vision, 48, 2e-3),
        "alignment": (stages.train_alignment, alignment, 48, 2e-3),
        "chatter": (stages.train_chatter, chatter, 48, 1e-3),
    }


FIRST = ("nano-llava", "nano-blip2")  # icons alone, in the words of Nano-IconQA
READERS = tuple(TOWERS)  # they read, and know facts
STAGES: dict[str, dict[str, Stage]] = {
    **dict.fromkeys(FIRST, _on_pictures(3000, 2500, 1500, 800)),
    **dict.fromkeys(READERS, _on_pictures(2000, 3500, 1500, 600)),
    "nano-salmonn": {
        "language": (sound_stages.train_language, 1000, 32, 2e-3),
        "hearing": (sound_stages.train_hearing, 1800, 32, 2e-3),
        "alignment": (sound_stages.train_alignment, 800, 32, 1e-3),
    },
}
PACKAGES = ("torch", "transformers", "tokenizers")
PICTURE_PACKAGES, SOUND_PACKAGES = ("qtawesome", "pillow"), ("pretty_midi", "soxr")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=STAGES)
    parser.add_argument("--output", type=Path, required=True, help="new folder for weights, tokenizer and record")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps of every stage")
    parser.add_argument("--glyphs", type=int, default=None, help="use this many glyphs only (for a quick trial)")
    parser.add_argument("--resume", type=Path, help="folder of an earlier run whose stages need not be done again")
    parser.add_argument("--clips", type=int, default=None, help="use this many clips of a sound (for a quick trial)")
    known = list(dict.fromkeys(stage for plan in STAGES.values() for stage in plan))
    parser.add_argument("--until", choices=known, help="last stage to do; all if not given")
    options = parser.parse_args(arguments)
    if options.until and options.until not in STAGES[options.name]:
        parser.error(f"{options.name} has the stages {', '.join(STAGES[options.name])}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run the stages, measure, and write the folder."""
    options = parse(arguments)
    if options.output.exists():
        raise SystemExit(f"{options.output} exists: give a new folder")
    torch.set_num_threads(1)
    nano = _start(options)
    done = {} if options.resume is None else _resume(options.resume, nano)
    nano.model.set_attn_implementation("eager")  # in bfloat16 on a CPU its backward is several times as fast as sdpa's

    plan = STAGES[options.name]
    wanted = list(plan)[: list(plan).index(options.until) + 1] if options.until else list(plan)
    for stage in [stage for stage in wanted if stage not in done]:
        train, full, batch, lr = plan[stage]
        begun, steps = time.perf_counter(), max(1, round(full * options.scale))
        loss = train(nano, steps, batch, lr, _logger(stage, begun))
        minutes = (time.perf_counter() - begun) / 60
        done[stage] = {"steps": steps, "batch": batch, "lr": lr, "loss": round(loss, 4), "minutes": round(minutes, 2)}
    nano.model.set_attn_implementation("sdpa")
    measure = sound_stages.measure if isinstance(nano, Listener) else stages.measure
    answers = {form: round(share, 3) for form, share in measure(nano, max(50, round(2000 * options.scale))).items()}
    record = {**_describe(options, nano), "stages": done, "answers_right_on_new_scenes": answers}
    if options.name in READERS:
        record["texts_read"] = texts_read(nano, max(12, round(500 * options.scale)))
    _write(options.output, nano, record)


def _start(options: argparse.Namespace) -> Nano | Listener:
    """Return the untrained model with what it is trained on."""
    tokenizer = _tokenizer(options.name)
    processor = build_processor(options.name, tokenizer)  # may add tokens
    model = build_model(options.name, len(tokenizer), options.seed)
    if options.name == "nano-salmonn":
        return Listener(model, processor, SoundBook(options.seed, options.clips), options.seed)
    if options.name in FIRST:
        return Nano(options.name, model, processor, GlyphBook(options.glyphs), options.seed)
    pages = max(100, round(PAGES * min(1.0, options.scale)))
    library = Library(options.glyphs, pages, seed=options.seed)
    return Nano(options.name, model, processor, library, options.seed, LESSONS, LESSON_WORDS)


def _tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer of all words of a model's nano datasets and of the forms it is trained on."""
    if name == "nano-salmonn":
        words = {*nano_clothoaqa_vocabulary(), *nano_macs_vocabulary(), *nano_songdescriber_vocabulary()}
        return build_salmonn_tokenizer({*words, *SOUND_WORDS.split()})
    return build_tokenizer(nano_vocabulary([WORDS]) if name in FIRST else vocabulary())


def _resume(folder: Path, nano: Nano | Listener) -> dict[str, dict[str, object]]:
    """Take over the weights of an earlier run; returns the record of its stages (each has its own chance)."""
    nano.model.load_state_dict(nano.model.from_pretrained(folder, dtype="float32").state_dict())
    done: dict[str, dict[str, object]] = json.loads((folder / "PRETRAINING.json").read_text("utf-8"))["stages"]
    return done


def _describe(options: argparse.Namespace, nano: Nano | Listener) -> dict[str, object]:
    """Describe the request and its environment: the first part of PRETRAINING.json."""
    changed = {"scale": options.scale if options.scale != 1 else None, "glyphs": options.glyphs, "clips": options.clips}
    packages = (*PACKAGES, *(SOUND_PACKAGES if isinstance(nano, Listener) else PICTURE_PACKAGES))
    extra = "".join(f" --{key} {value}" for key, value in changed.items() if value is not None)
    return {
        "command": f"python lab/pretraining/pretrain_nano.py {options.name} --output DIR --seed {options.seed}{extra}",
        "seed": options.seed,
        "data": nano.describe(),
        "parameters": sum(parameter.numel() for parameter in nano.model.parameters()),
        "vocabulary": len(nano.processor.tokenizer),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        "machine": {"architecture": platform.machine(), "threads": torch.get_num_threads()},
    }


def _logger(stage: str, begun: float) -> Callable[[str], None]:
    return lambda text: print(f"{stage}: {text} ({time.perf_counter() - begun:.0f} s)", file=sys.stderr, flush=True)


def _write(output: Path, nano: Nano | Listener, record: dict[str, object]) -> None:
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

"""What commit-tuning costs: `python lab/benchmarks/overhead.py`, then `--page` for `docs/explanation/cost.md`.

Every shape is trained plainly, measured, and controlled, a step of each in turn within one process, and the processor
time of every step is kept as JSON. Counted besides: floating-point operations and logits touched. A shape that was
measured with the same source and settings is left alone, so a run that was cut off goes on. One core; 15 minutes.

With `--device cuda --shape llava-7b gpu-checks`: the sizes of LLaVA-1.5-7B with random weights, and two minutes of
checks of what needs a GPU.
"""

import argparse
import hashlib
import json
import multiprocessing
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from overhead_measures import EVERY, SELDOM, alternate, counts, peak_memory, profile, tiers
from overhead_subjects import SHAPES, random_llava
from tqdm import tqdm

import commit_tuning
from commit_lab.studies.overhead import time_to_result
from commit_lab.studies.overhead_page import page_of, read_records
from commit_tuning import CoMMITConfig
from commit_tuning.config import DriftPenalty, Lookahead, PreviousStep, Probe
from commit_tuning.errors import UserError, one_line
from commit_tuning.storage import write_text
from commit_tuning.train.compare.comparison import TABLE
from commit_tuning.train.record import hardware, package_versions

ROOT = Path(__file__).parents[2]
RECORDS, PAGE, QUICK = ROOT / "lab/results/overhead", ROOT / "docs/explanation/cost.md", ROOT / "runs/overhead-quick"
WHOLE = {"nano-llava-v2": 400, "nano-blip2-v2": 400}
"""Shapes that are trained through, and their steps."""

ROUNDS, WARM_UP, PROFILED = 14, 4, 5
FEWER = {"small-llava": 12, "llava-256k": 13}
MEMORY = ("nano-llava-v2", "llava-49k", "llava-256k", "small-llava")
BASE = {"vocabulary": 8192, "text": 32, "answers": 8}
GROWTH: dict[str, list[dict[str, Any]]] = {
    "batch": [{"batch": 2}, {"batch": 8}, {"batch": 32}],
    "tokens of text": [{"text": 16}, {"text": 64}, {"text": 256}],
    "answer tokens of 64": [{"text": 64, "answers": 2}, {"text": 64, "answers": 16}, {"text": 64, "answers": 48}],
    "vocabulary": [{"vocabulary": size * 1024, "text": 16, "answers": 6, "batch": 4} for size in (8, 32, 64, 128, 256)],
    "rank of LoRA (none: in full)": [{"rank": 2}, {"rank": 32}, {"rank": None}],
    "modules": [{"projector": "encoder"}, {"projector": "own"}],
}
METHODS = {
    "measuring every sample at every step": CoMMITConfig(method="constant", probe=Probe(interval=1, samples=None)),
    "commit (lookahead)": CoMMITConfig(method="commit"),
    "commit, on sampled answers": CoMMITConfig(method="commit", regularizer=Lookahead(labels="sampled")),
    "commit-clr, drift penalty": CoMMITConfig(regularizer=DriftPenalty()),
    "the paper to the letter (lookahead)": CoMMITConfig.paper(),
    "the paper to the letter, previous step": CoMMITConfig.paper(regularizer=PreviousStep()),
}
ON_A_GPU = ("llava-7b", "gpu-checks")
Result = dict[str, Any]


def parts(quick: bool) -> dict[str, tuple[Callable[..., Result], dict[str, Any]]]:
    """Part to the function that measures it and what that is given, beside the device."""
    few = 6 if quick else None
    found: dict[str, tuple[Callable[..., Result], dict[str, Any]]] = {}
    for name in SHAPES:
        if name in WHOLE:
            found[name] = trained_through, {"name": name, "steps": 40 if quick else WHOLE[name]}
        else:
            found[name] = each_kind_of_step, {"name": name, "rounds": few or FEWER.get(name, ROUNDS)}
    found["methods"] = methods, {"rounds": 10 if quick else 20}
    found["memory"] = memory, {"steps": 2}
    found["growth"] = growth, {"rounds": few or ROUNDS}
    found["trainers"] = trainers, {"pairs": 2 if quick else 10, "steps": 17}
    found["gpu-checks"] = gpu_checks, {}
    return found


def trained_through(device: str, name: str, steps: int) -> Result:
    """A shape that is cheap enough: every arm from its first step to its last."""
    subject = SHAPES[name](device)
    configs = {"plain": None, "monitor": CoMMITConfig(method="constant"), "default": CoMMITConfig(), **tiers()}
    return {
        "title": subject.title, "facts": subject.facts(), "counted": counts(subject),
        "profile": profile(subject, PROFILED), "rounds": alternate(subject, configs, steps),
    }  # fmt: skip


def each_kind_of_step(device: str, name: str, rounds: int) -> Result:
    """A shape that is not: measured steps, steps that are not measured, plain ones."""
    subject = SHAPES[name](device)
    result = {
        "title": subject.title, "facts": subject.facts(), "warm_up": min(WARM_UP, rounds - 2),
        "rounds": alternate(subject, {"plain": None, "every": EVERY, "seldom": SELDOM}, rounds),
    }  # fmt: skip
    return result | {"counted": counts(subject), "profile": profile(subject, PROFILED)}


def methods(device: str, rounds: int) -> Result:
    """What else a configuration may ask for, on nano BLIP-2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the paper's controller is unstable, and says so
        return {"rounds": alternate(SHAPES["nano-blip2-v2"](device), {"plain": None, **METHODS}, rounds)}


def memory(device: str, steps: int) -> Result:
    """Peak memory of plain training and of training of which every step is measured, each in a process of its own."""
    found = {}
    for name in MEMORY:
        arms = {"plain": None, "measured": EVERY}
        peaks = {arm: apart(_peak, device, name, config, steps) for arm, config in arms.items()}
        if not any(isinstance(peak, dict) for peak in peaks.values()):
            found[name] = peaks
    return {"peaks": found}


def _peak(device: str, name: str, config: CoMMITConfig | None, steps: int) -> float:
    return peak_memory(SHAPES[name](device), config, steps)


def growth(device: str, rounds: int) -> Result:
    """A small LLaVA of which one size at a time is another."""
    points = []
    for axis, changes in GROWTH.items():
        for change in changes:
            sizes = {**BASE, **change}
            projector = sizes.pop("projector", "encoder")
            subject = random_llava(**sizes, device=device, layers=2, projector=projector)
            taken = alternate(subject, {"plain": None, "every": EVERY}, rounds)
            points.append({"axis": axis, "value": _value(change), "facts": subject.facts(), "rounds": taken})
    return {"points": points, "warm_up": min(WARM_UP, rounds - 2)}


def _value(change: dict[str, Any]) -> str:
    """What tells a point from the others of its axis."""
    name = next((key for key in ("answers", "batch", "vocabulary") if key in change), next(iter(change)))
    name = "vocabulary" if "vocabulary" in change else name
    return {"encoder": "2", "own": "3", None: "none"}.get(change[name], str(change[name]))


def trainers(device: str, pairs: int, steps: int) -> Result:
    """Set `Trainer` of transformers and `SFTTrainer` of TRL beside ours; on the CPU."""
    from overhead_trainers import pairs_of, sft_trainer, trainer_of

    del device
    makers = {"Trainer": trainer_of(SHAPES["nano-llava-v2"]("cpu"), steps), "SFTTrainer": sft_trainer(steps)}
    return {"trainers": {name: {"pairs": pairs_of(make, pairs)} for name, make in makers.items()}}


def gpu_checks(device: str) -> Result:
    """What needs a GPU."""
    from overhead_gpu import smoke

    return {"checks": smoke(device)}


def apart(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function in a process of its own; what goes wrong there is given back as `{"skipped": why}`."""
    forked = "fork" if arguments[0] == "cpu" and sys.platform == "linux" else "spawn"  # a fork has no use of a GPU
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context(forked), initializer=_one_core) as pool:
            return pool.submit(function, *arguments, **named).result()
    except UserError as error:
        return {"skipped": str(error)}
    except Exception as error:  # of torch.compile, of memory: the other shapes go on
        return {"skipped": f"{type(error).__name__}: {one_line(error)[:200]}"}


def _one_core() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def source() -> str:
    """A checksum of the product's source."""
    files = sorted(Path(commit_tuning.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def table_of(comparison: Path) -> list[Result]:
    """The rows of a comparison's table.

    Raises:
        UserError: It has none.
    """
    try:
        rows: list[Result] = json.loads((comparison / TABLE).read_text("utf-8"))["rows"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{comparison} is no finished comparison ({one_line(error)})") from None
    return rows


def measure(name: str, arguments: argparse.Namespace, path: Path) -> None:
    """Measure one part, unless its record is there and of the same source and settings."""
    function, given = parts(arguments.quick)[name]
    about = {"device": arguments.device, "quick": arguments.quick, "source": source(), **given}
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else None
    if kept and kept["about"] == about and "skipped" not in kept:
        tqdm.write(f"{name}: measured before")
        return
    # memory has processes of its own, which a process of a pool could not have
    result = function(arguments.device, **given) if function is memory else apart(function, arguments.device, **given)
    if "skipped" in result:
        tqdm.write(f"{name}: skipped, {result['skipped']}")
        if kept and "skipped" not in kept:
            return
    record = {"name": name, "about": about, **result, "versions": package_versions()}
    record["hardware"] = hardware(1) | ({"device": torch.cuda.get_device_name()} if arguments.device == "cuda" else {})
    write_text(path, json.dumps(record) + "\n")


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(parts(quick=False))
    parser.add_argument("--shape", nargs="+", choices=names, help="parts to measure; all that the device is for")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="a check: few steps, records below runs/")
    parser.add_argument("--records", type=Path, help="folder of the records")
    parser.add_argument("--runs", type=Path, nargs="+", metavar="COMPARISON", help="read the time to a result instead")
    parser.add_argument("--page", action="store_true", help="write the page from the records, and measure nothing")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page")
    arguments = parser.parse_args()
    folder = arguments.records or (QUICK if arguments.quick else RECORDS)
    try:
        if arguments.page:
            write_text(arguments.output, page_of(read_records(folder), ROOT / "lab/results"))
            return
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.runs:
            arrivals = [asdict(line) for runs in arguments.runs for line in time_to_result(runs, table_of(runs))]
            write_text(
                folder / "time-to-result.json", json.dumps({"name": "time-to-result", "arrivals": arrivals}) + "\n"
            )
            return
        wanted = arguments.shape or [n for n in names if (n in ON_A_GPU) == (arguments.device == "cuda")]
        for name in tqdm(wanted, desc="cost", unit="part"):
            measure(name, arguments, folder / f"{name}.json")
    except UserError as error:
        sys.exit(f"overhead.py: error: {error}")


if __name__ == "__main__":
    main()

"""Compare two trees bit for bit: logs, multipliers, states and weights of short trainings under every setting.

    python scripts/characterise.py --base COMMIT

checks out COMMIT beside the working tree, runs the same trainings with both sources in processes of their own on this
machine, and prints every difference. A difference is a mended fault, to be named, or an error. Nothing is kept but the
report: numbers differ from one processor to another.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = 50
NANO = ("nano-llava-v2", "nano-salmonn")

METHODS = (
    "constant",
    "synced",
    "feature-cd",
    "language-cd",
    "language-lr-up",
    "encoder-lr-up",
    "hypergradient",
    "commit-clr",
    "commit",
)
CONTROLLERS = ("trust-region", "compensated", "bounded", "literal")
REGULARIZERS: tuple[dict[str, Any], ...] = (
    {"method": "commit", "regularizer": "lookahead"},
    {"method": "commit", "regularizer": "lookahead", "regularizer_labels": "sampled"},
    {"method": "commit", "regularizer": "previous-step"},
    {"method": "commit", "regularizer": "previous-step", "regularizer_step": "optimizer"},
    {"method": "constant", "regularizer": "previous-step", "regularizer_labels": "sampled"},
    {"method": "commit-clr", "regularizer": "drift-penalty"},
)
SCHEDULE = {"kappa_window": 6, "lr_update_interval": 3, "probe_interval": 2, "probe_samples": 3}


def settings() -> dict[str, dict[str, Any]]:
    """Every method, controller and regulariser, by name, as flat settings of `CoMMITConfig`."""
    chosen: list[dict[str, Any]] = [{"method": method, **SCHEDULE} for method in METHODS]
    chosen += [
        {"method": method, "controller": controller, **SCHEDULE}
        for method, controller in itertools.product(("commit-clr", "commit"), CONTROLLERS)
    ]
    chosen += [{**regularizer, "controller": c, **SCHEDULE} for regularizer in REGULARIZERS for c in CONTROLLERS[:2]]
    chosen += [
        {"controller": c, "kappa_estimator": e, **SCHEDULE} for c in CONTROLLERS for e in ("arithmetic", "ratio")
    ]
    chosen += [{"controller": c, "rate_normalization": "product", **SCHEDULE} for c in CONTROLLERS[1:3]]
    chosen += [{}, {"drift_scale": 4.0, **SCHEDULE}, {"method": "commit", "probe_samples": None}]
    return {json.dumps(one, sort_keys=True): one for one in chosen}


def run_all(folder: Path) -> dict[str, Any]:
    """Train under every setting: a plain module of two encoders, and two nano models."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for name, chosen in settings().items():
        for kind in ("plain", *NANO):
            if kind != "plain" and "method" not in chosen and "controller" not in chosen:
                continue
            try:
                found[f"{kind} {name}"] = one_run(kind, chosen)
            except ValueError as error:  # a setting that a model cannot have
                found[f"{kind} {name}"] = {"lines": [{"error": str(error)}], "weights": ""}
    (folder / "found.json").write_text(json.dumps(found))
    return found


def one_run(kind: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """One training, and what it leaves: a line a step, and checksums of weights and state."""
    import torch

    model, partition, batches = plain() if kind == "plain" else nano(kind)
    groups = [{"params": list(partition[module]), "lr": 2e-3} for module in partition]
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * STEPS)
    coordinator = coordinator_of(model, optimizer, chosen, partition)
    lines = []
    steps = STEPS if kind == "plain" else STEPS // 2
    for step in range(steps):
        batch = batches[step % len(batches)]
        loss = model(**batch).loss if kind != "plain" else plain_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        coordinator.step(batch)
        scheduler.step()
        optimizer.zero_grad()
        record = {"loss": loss.item(), **coordinator.metrics(), **coordinator.summary()}
        multipliers = {f"multiplier/{name}": value for name, value in coordinator.multipliers.items()}
        lines.append({key: exact(value) for key, value in {**record, **multipliers}.items()})
    weights = hashlib.sha256()
    for name, parameter in model.named_parameters():
        weights.update(name.encode() + parameter.detach().float().numpy().tobytes())
    return {"lines": lines, "weights": weights.hexdigest()}


def exact(value: float | None) -> str | None:
    """A number with all of its bits."""
    return None if value is None else float(value).hex()


def coordinator_of(model: Any, optimizer: Any, chosen: Mapping[str, Any], partition: Any) -> Any:
    """The coordinator of either tree."""
    from commit_tuning import CoMMITConfig, Coordinator, config

    if hasattr(config, "MOVED"):
        from commit_tuning.plugins import load_plugins

        load_plugins()
        nested: dict[str, Any] = {}
        for key, value in chosen.items():
            part, _, name = config.MOVED.get(key, key).partition(".")
            if name or part in {"controller", "regularizer"}:
                nested.setdefault(part, {})[name or "name"] = value
            else:
                nested[part] = value
        chosen = nested
    return Coordinator(model, optimizer, CoMMITConfig(**chosen), partition)


def plain() -> tuple[Any, Any, list[dict[str, Any]]]:
    """A module with two encoders, of which one has a turn at every other batch."""
    import torch
    from torch import nn

    from commit_tuning import ModulePartition

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.see, self.hear, self.words = nn.Linear(6, 16), nn.Linear(5, 16), nn.Embedding(23, 16)
            self.mix, self.head = nn.GRU(16, 16, batch_first=True), nn.Linear(16, 23)

        def forward(self, input_ids: Any, picture: Any = None, sound: Any = None, labels: Any = None) -> Any:
            from types import SimpleNamespace

            inner = self.words(input_ids)
            if picture is not None:
                inner = inner + self.see(picture)[:, None].tanh()
            if sound is not None:
                inner = inner + self.hear(sound)[:, None].tanh()
            return SimpleNamespace(logits=self.head(self.mix(inner)[0]))

    torch.manual_seed(0)
    model = Plain()
    modules = {
        "vision": list(model.see.named_parameters("see")),
        "audio": list(model.hear.named_parameters("hear")),
        "language_model": [(n, p) for n, p in model.named_parameters() if not n.startswith(("see", "hear"))],
    }
    batches = []
    for number in range(10):
        tokens = torch.randint(0, 23, (4, 7))
        batch = {"input_ids": tokens, "labels": tokens.clone(), "picture": torch.randn(4, 6)}
        batch["labels"][:, :3] = -100
        if number % 3:
            batch["sound"] = torch.randn(4, 5)
        if number % 4 == 3:
            del batch["picture"]
        batches.append(batch)
    return model, ModulePartition(modules), batches


def plain_loss(model: Any, batch: Mapping[str, Any]) -> Any:
    """The cross-entropy of the next token."""
    import torch

    logits = model(**batch).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def nano(name: str) -> tuple[Any, Any, list[dict[str, Any]]]:
    """A nano model and made-up questions about noise."""
    import numpy as np
    import torch
    from PIL import Image

    if find_spec("commit_tuning.partition"):
        from commit_lab.nano.models.load import load_nano
        from commit_tuning.partition.discover import partition_model
    else:
        from commit_tuning.models.nano import load_nano
        from commit_tuning.models.partition import partition_model
    from commit_tuning.data.collate import VisionCollator
    from commit_tuning.data.sample import Audio, Sample

    torch.manual_seed(0)
    model, processor = load_nano(name)
    model.requires_grad_(True).train()
    collator = VisionCollator(processor)
    chance = np.random.default_rng(0)
    batches = []
    for number in range(5):
        samples = []
        for place in range(4):
            sound = name == "nano-salmonn"
            answer = ("red", "two", "a cat", "left")[(number + place) % 4]
            samples.append(
                Sample(
                    f"{number}-{place}",
                    "fill_in_blank",
                    f"What is number {number * place}?",
                    None,
                    (answer,),
                    image=None if sound else Image.fromarray(chance.integers(0, 255, (64, 64, 3), dtype=np.uint8)),
                    audio=Audio(chance.normal(size=16_000).astype(np.float32) / 10, 16_000) if sound else None,
                )
            )
        batches.append(dict(collator(samples)))
    return model, partition_model(model), batches


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Every training that differs, with the first step and value that do."""
    for name in old:
        if name not in new:
            yield f"{name}: not in the new tree"
            continue
        for step, (one, other) in enumerate(zip(old[name]["lines"], new[name]["lines"], strict=True), 1):
            keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
            if keys:
                shown = ", ".join(f"{key} {one.get(key)} -> {other.get(key)}" for key in keys[:3])
                yield f"{name}: step {step}: {len(keys)} values, {shown}"
                break
        else:
            if old[name]["weights"] != new[name]["weights"]:
                yield f"{name}: weights"


def run_tree(sources: list[Path], folder: Path) -> dict[str, Any]:
    """The trainings of one tree, in a process of its own."""
    folder.mkdir()
    paths = os.pathsep.join(map(str, sources))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, "--into", str(folder)], env=environment, check=True)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def main() -> None:
    """Run both trees and print the differences; exit code 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help="the commit to compare with")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.into:
        run_all(chosen.into)
        return
    with tempfile.TemporaryDirectory() as made:
        base = Path(made, "base")
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", "-q", base, chosen.base], check=True)
        try:
            trees = (
                ([base / "src", base / "lab" / "src"], Path(made, "old")),
                ([ROOT / "src", ROOT / "lab" / "src"], Path(made, "new")),
            )
            with ThreadPoolExecutor(2) as pool:
                old, new = pool.map(lambda tree: run_tree(*tree), trees)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", base], check=True)
    found = list(differences(old, new))
    print("\n".join([*found, f"{len(old)} trainings, {len(found)} differ"]))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()

"""Where the time of `commit-tuning train` goes: `python lab/benchmarks/command_line.py [RECIPE] [SETTINGS]`.

Each run is a process of its own. Prints, for each run and as medians, the CPU seconds of the process from its start to
its end, those of the training steps and of the evaluation, and the share of the rest.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Print a line of JSON for each run, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="nano-blip2")
    parser.add_argument("settings", nargs="*", help="section.key=value")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(run(arguments.recipe, arguments.settings)))
        return
    command = [sys.executable, __file__, "--child", arguments.recipe, *arguments.settings]
    rows = []
    for _ in range(arguments.runs):
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(output.splitlines()[-1]))
        print(json.dumps(rows[-1]))
    print(json.dumps({name: statistics.median(row[name] for row in rows) for name in rows[0]}))


def run(recipe: str, settings: list[str]) -> dict[str, float]:
    """Train as the command does; CPU seconds by part, and the share of what is neither loop nor evaluation."""
    from commit_tuning.processes import uncollected

    with uncollected():  # as the command imports them
        from transformers import AutoModelForMultimodalLM, AutoProcessor  # noqa: F401

        from commit_tuning.cli.app import main as command
        from commit_tuning.train import runner
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                seconds[name] = time.process_time() - started

        return wrapped

    runner.train_steps, runner._evaluate = timed("loop", runner.train_steps), timed("evaluation", runner._evaluate)
    with tempfile.TemporaryDirectory() as folder:
        try:
            command(["train", recipe, *settings, "--output", folder])
        except SystemExit as end:
            if end.code:
                raise
    total = time.process_time()
    return {**seconds, "total": total, "outside": (total - sum(seconds.values())) / total}


if __name__ == "__main__":
    main()

"""Arms on a command line: `METHOD:RATE[:SETTING=VALUE...]`.

A method of `CoMMITConfig`, `default` for `CoMMITConfig()`, `literal` for the paper to the letter, `literal-clr` for it
without the regulariser.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from commit_tuning import CoMMITConfig
from commit_tuning.errors import UserError
from commit_tuning.train.recipe.schema import LITERAL


@dataclass(frozen=True)
class Arm:
    """A method at a base rate, as it is written on the command line."""

    text: str
    rate: float
    config: CoMMITConfig

    @classmethod
    def parse(cls, text: str, steps: int) -> "Arm":
        """Read `METHOD:RATE[:SETTING=VALUE...]`; coordinate descent switches at half of the steps at the latest."""
        method, _, rest = text.partition(":")
        rate, *settings = rest.split(":")
        if not rate:
            raise UserError(f"--arms: {text!r} has no rate; write METHOD:RATE, such as default:1e-3")
        named: dict[str, Any] = {"switch": {"latest": max(1, steps // 2)}}
        for key, value in (setting.split("=", 1) for setting in settings):
            part, _, name = key.rpartition(".")
            (named.setdefault(part, {}) if part else named)[name] = yaml.safe_load(value)
        if method in LITERAL:
            config = CoMMITConfig.paper(**{"method": LITERAL[method], **named})
        else:
            config = CoMMITConfig(**named if method == "default" else {"method": method, **named})
        return cls(text, float(rate), config)


def add_options(parser: argparse.ArgumentParser, arms: list[str], stops: list[int], seeds: list[int]) -> None:
    """Add the options of every script that calls `run_all`."""
    parser.add_argument("--arms", nargs="+", default=arms)
    parser.add_argument("--stops", type=int, nargs="+", default=stops, help="optimizer steps after which to look")
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--output", type=Path, required=True)

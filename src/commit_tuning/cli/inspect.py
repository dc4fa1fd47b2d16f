"""`commit-tuning inspect`: which parameters train, and which cannot."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from commit_tuning.cli.options import SettingsArgument
from commit_tuning.shown import visible_line


def inspect(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A recipe (file or shipped name), a model folder or a hub name.")
    ],
    settings: SettingsArgument = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Count parameters by module, and find what is trainable and cannot learn. Exit code 1 if there is such a thing.

    Of a recipe, its model as it would be trained, on a batch of its data; of a model, all of it, on a grey picture or
    on silence.

    Examples:
      commit-tuning inspect llava-textvqa

      commit-tuning inspect ~/models/llava-1.5-7b-hf --json
    """
    from transformers.utils import logging

    from commit_tuning.train.inspect_target import inspect_target

    logging.disable_progress_bar()
    found = inspect_target(target, settings or [])
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _print_table(found)
    if found.faults:
        raise typer.Exit(1)


def _print_table(found: Any) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    with_optimizer = any(module.without_optimizer is not None for module in found.modules)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    table.add_column("module", no_wrap=True)
    for name in ("trainable", "frozen", "unreachable", "no gradient"):
        table.add_column(name, justify="right")
    for name in ("no group", "lr", "decay") if with_optimizer else ():
        table.add_column(name, justify="right")
    for module in found.modules:
        counts = [module.trainable, module.frozen, module.unreachable, module.zero_gradient]
        cells = [*map(_shown, counts)]
        if with_optimizer:
            rates = (", ".join(f"{v:g}" for v in values) for values in (module.learning_rates, module.weight_decays))
            cells += [_shown(module.without_optimizer), *rates]
        table.add_row(Text(visible_line(module.name)), *cells)
    console = Console()
    console.print(table)
    for fault in found.faults:
        console.print(Text(f"cannot learn: {visible_line(fault)}", style="red"))
    for note in found.notes:
        console.print(Text(f"note: {visible_line(note)}", style="yellow"))
    if not found.faults:
        console.print("everything that is trainable can learn", style="green")


def _shown(count: int | None) -> str:
    """A count that fits a narrow terminal: `1,234`, `554.1k`, `22.1M`, `6.7B`."""
    if count is None or count < 10_000:
        return "-" if count is None else f"{count:,}"
    scale, unit = next((scale, unit) for scale, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if count >= scale)
    return f"{count / scale:.1f}{unit}"

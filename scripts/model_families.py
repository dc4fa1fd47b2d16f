"""Write docs/reference/models.md, what comes of each family of transformers: ``python scripts/model_families.py``.

It holds them all to the contract of ``tests/families``, a minute on one core, and writes nothing where one breaks it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from families.catalogue import OTHERS, families, found, needs  # noqa: E402
from families.contract import Outcome, check  # noqa: E402

PAGE = """\
# Which models of transformers it works with

A tiny random model of every multimodal generation class of transformers {version} is held to one contract. It passes
if the partition gives each trainable parameter to one module, a gradient reaches every module, every module's drift
is the slow reference's, and a coordinated step changes every module and leaves a finite kappa. That says that kappa
is measured rightly, not that training goes well. Where image features are reused, a measurement runs the image
encoder only when the encoder's own weights change; elsewhere it runs the whole model each time, which takes longer
and gives the same.

`make test-all` checks it, `python scripts/model_families.py` writes this page.

## Classes that take `mm_encoder_outputs`

{counts_found}

{table_found}

## Others

Models whose `forward` takes none, BLIP-2 over an encoder-decoder, and SALMONN of this package. {counts_others}

{table_others}
"""
HEAD = ["| class | modules | features of images |", "| --- | --- | --- |"]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "reference" / "models.md", help="the page (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Check every family, then write the page."""
    options = parse(arguments)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    options.output.write_text(page({name: outcome(name) for name in families()}), encoding="utf-8")
    print(f"wrote {options.output}")


def outcome(name: str) -> Outcome:
    """What came of a family; ends the program where it breaks the contract."""
    try:
        return check(name)
    except Exception as fault:
        raise SystemExit(f"{name} breaks the contract: {type(fault).__name__}: {fault}") from fault


def page(outcomes: Mapping[str, Outcome]) -> str:
    """The page in Markdown."""
    return PAGE.format(
        version=transformers.__version__,
        counts_found=counts([outcomes[name] for name in found()]),
        table_found=table(found(), outcomes),
        counts_others=counts([outcomes[name] for name in OTHERS]),
        table_others=table(OTHERS, outcomes),
    )


def counts(outcomes: list[Outcome]) -> str:
    """How many passed, were refused and could not be built."""
    refused = sum(outcome.refusal is not None for outcome in outcomes)
    not_built = sum(outcome.reason is not None for outcome in outcomes)
    passed = len(outcomes) - refused - not_built
    return f"Of {len(outcomes)}, {passed} pass, {refused} are refused with a reason, {not_built} cannot be built here."


def table(names: Iterable[str], outcomes: Mapping[str, Outcome]) -> str:
    """A row for each family."""
    return "\n".join([*HEAD, *(f"| `{name}` | {row(name, outcomes[name])} |" for name in names)])


def row(name: str, outcome: Outcome) -> str:
    """Modules and features, or why there are none."""
    if outcome.refusal:
        return f"refused: {outcome.refusal.removeprefix(name).strip()} | "
    if outcome.reason:
        return f"cannot be built here: {outcome.reason} | "
    features = "reused" if outcome.reuses_features else "a full forward each time"
    note = needs(name).note
    return f"{', '.join(outcome.modules)} | {features}{f' ({note})' if note else ''}"


if __name__ == "__main__":
    main()

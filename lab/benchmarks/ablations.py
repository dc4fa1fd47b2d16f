"""Ablations as commands: `python lab/benchmarks/ablations.py list | commands | run | page`.

`run` makes the comparisons of some studies (all, if none is named) below `--output`; it resumes where it stopped, and a
run that two comparisons share is made once. `page` condenses what has finished into a JSON record for each comparison
and writes `lab/reports/ablations.md` and its figures from the records and `findings.md` beside them. All studies
together are 146 runs, about two hours on one core: 116 on nano BLIP-2 of some 40 seconds, 30 on nano LLaVA of some
75. `run` ends with exit code 1 if a comparison was refused or a run failed.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from commit_lab.studies.ablation_page import write_page
from commit_lab.studies.ablations import Plan, Study, adopt_finished_runs, write_records
from commit_tuning.errors import UserError

BLIP2 = {"recipe": "iconqa-nano-blip2", "rates": (1e-3,)}  # the rate that validation chose for Constant LR
LLAVA = {"recipe": "iconqa-nano-llava", "rates": (3e-4,)}


def on_blip2(study: str, key: str, *values: object) -> tuple[Plan, ...]:
    """Plan CoMMIT-CLR and Constant LR on nano BLIP-2 along one axis."""
    return (Plan(name=f"{study}-nano-blip2", **BLIP2, axes=((key, values),)),)


def on_both(study: str, key: str, *values: object) -> tuple[Plan, ...]:
    """Plan the same on nano BLIP-2 and nano LLaVA."""
    return (
        *on_blip2(study, key, *values),
        Plan(name=f"{study}-nano-llava", **LLAVA, axes=((key, values),)),
    )


STUDIES = {
    "window": Study(
        question="How many measurements should smoothed kappa average (the paper's N_kappa)?",
        plans=on_blip2("window", "commit.kappa_window", 10, 20, 50, 100),
    ),
    "update-interval": Study(
        question="How many optimizer steps between two updates of the learning rates (the paper's N_lr)?",
        plans=on_blip2("update-interval", "commit.lr_update_interval", 5, 10, 50),
    ),
    "probe-samples": Study(
        question="How many samples of the batch should a measurement look at, and what does each choice cost?",
        plans=on_blip2("probe-samples", "commit.probe_samples", 1, 4, 8, 16),
    ),
    "probe-interval": Study(
        question="How many optimizer steps between two measurements, and what does each choice cost?",
        plans=on_blip2("probe-interval", "commit.probe_interval", 1, 5, 20),
    ),
    "estimator": Study(
        question="Which moving average of kappa: the paper's arithmetic mean, the geometric one, or a ratio of sums?",
        plans=on_blip2("estimator", "commit.kappa_estimator", "arithmetic", "geometric", "ratio"),
    ),
    "controller": Study(
        question="Which controller turns kappa into rates: Eq. 8 as printed, bounded, compensated, or a trust region? "
        "The arms keep the sum of the rates, as Eq. 8 does, or their product, and use the default moving average.",
        plans=(
            Plan(
                name="controller-sum-nano-blip2",
                **BLIP2,
                settings=("commit.rate_normalization=sum",),
                axes=(("commit.controller", ("trust-region", "literal", "bounded", "compensated")),),
            ),
            Plan(
                name="controller-product-nano-blip2",
                **BLIP2,
                axes=(
                    ("commit.controller", ("bounded", "compensated")),
                    ("commit.rate_normalization", ("product",)),
                ),
            ),
        ),
    ),
    "drift-target": Study(
        question="How far should one step of a module move the output distribution, as a share of the loss?",
        plans=on_both("drift-target", "commit.drift_target", 3e-5, 1e-4, 2e-4, 5e-4, 2e-3),
    ),
    "kappa-target": Study(
        question="Which kappa should the trust region aim at: balance, as the paper says, or another one?",
        plans=on_both("kappa-target", "commit.kappa_target", 0.1, 0.3, 1, 3, 10),
    ),
    "batch-size": Study(
        question="Does the drift target have to change with the batch size?",
        plans=tuple(
            Plan(
                name=f"batch-size-{size}-nano-blip2",
                **BLIP2,
                settings=(f"train.batch_size={size}",),
                axes=(("commit.drift_target", (5e-5, 2e-4, 8e-4)),),
            )
            for size in (4, 64)
        ),
    ),
    "optimizer": Study(
        question="Does coordination need Adam? Each optimizer at its own rates; SGD is without momentum.",
        plans=(
            *on_blip2("optimizer-adamw", "train.optimizer", "adamw"),
            Plan(
                name="optimizer-sgd-nano-blip2",
                recipe="iconqa-nano-blip2",
                rates=(0.1, 0.3),
                axes=(("train.optimizer", ("sgd",)),),
            ),
        ),
    ),
    "lora-rank": Study(
        question="Which LoRA rank for the language model, or (null) full fine-tuning? Alpha stays 16, so the adapter's "
        "scale, alpha / r, falls as the rank rises.",
        plans=on_blip2("lora-rank", "model.lora.r", 2, 8, 32, None),
    ),
    "projector": Study(
        question="Which module should own the projector: the encoder, the language model, or a third module of its "
        "own?",
        plans=on_both("projector", "model.projector", "encoder", "language_model", "own"),
    ),
    "learning-rates": Study(
        question="The paper's Section 5 at three rates: one for both modules (Constant LR, the paper's Synced LR), "
        "ten times the rate for the language model, ten times the rate for the encoder.",
        plans=(
            Plan(
                name="learning-rates-nano-blip2",
                recipe="iconqa-nano-blip2",
                rates=(1e-5, 1e-4, 1e-3),
                methods=("language-lr-up", "encoder-lr-up"),
            ),
        ),
    ),
}


def main() -> None:
    """List, print, run or publish."""
    arguments = parse()
    try:
        studies = chosen(getattr(arguments, "names", []))
        arguments.action(studies, arguments)
    except UserError as error:
        sys.exit(f"ablations.py: error: {error}")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, action in (("list", show), ("commands", commands), ("run", run)):
        subparser = actions.add_parser(name, help=action.__doc__)
        subparser.set_defaults(action=action)
        if action is not show:
            subparser.add_argument("names", nargs="*", metavar="NAME", help="studies; all if none is named")
            subparser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    subparser.add_argument("--jobs", type=int, help="runs at a time; as many as cores by default")
    publish = actions.add_parser("page", help=page.__doc__)
    publish.add_argument("runs", type=Path, nargs="?", help="condense what has finished here first")
    publish.add_argument("--records", type=Path, default=Path("lab/results/ablations"))
    publish.add_argument("--page", type=Path, default=Path("lab/reports/ablations.md"))
    publish.set_defaults(action=page)
    return parser.parse_args()


def chosen(names: list[str]) -> dict[str, Study]:
    """Return some studies by name, or all."""
    for name in names:
        if name not in STUDIES:
            raise UserError(f"no study {name!r}; there are {', '.join(STUDIES)}")
    return {name: STUDIES[name] for name in names or STUDIES}


def show(studies: dict[str, Study], arguments: argparse.Namespace) -> None:
    """Name every study and its question."""
    del arguments
    for name, study in studies.items():
        print(f"{name}: {study.question}")


def commands(studies: dict[str, Study], arguments: argparse.Namespace) -> None:
    """Print the `commit-tuning compare` line of every comparison."""
    for study in studies.values():
        for plan in study.plans:
            print(plan.command(arguments.output))


def run(studies: dict[str, Study], arguments: argparse.Namespace) -> None:
    """Make the comparisons of some studies.

    Raises:
        UserError: A comparison was refused, or a run of it failed; the others are made all the same.
    """
    plans = [plan for study in studies.values() for plan in study.plans]
    failed = [plan.name for plan in plans if not compare(plan, arguments)]
    if failed:
        raise UserError(f"{len(failed)} of {len(plans)} comparisons failed, see above: {', '.join(failed)}")


def compare(plan: Plan, arguments: argparse.Namespace) -> bool:
    """Make one comparison; whether all of it went well."""
    adopted = adopt_finished_runs(plan, arguments.output)
    print(f"{plan.command(arguments.output)}\n{adopted} runs taken over from other comparisons", flush=True)
    jobs = ["--jobs", str(arguments.jobs)] if arguments.jobs else []
    line = [*plan.arguments(), "--output", str(arguments.output / plan.name), *jobs]
    program = [sys.executable, "-c", "from commit_tuning.cli import main; main()"]
    return subprocess.run([*program, *line], check=False).returncode == 0


def page(studies: dict[str, Study], arguments: argparse.Namespace) -> None:
    """Condense what has finished, and write the page from the records."""
    if arguments.runs is not None:
        written = write_records(studies.items(), arguments.runs, arguments.records)
        print(f"{len(written)} records written to {arguments.records}")
    write_page(arguments.records, arguments.page, list(studies))


if __name__ == "__main__":
    main()

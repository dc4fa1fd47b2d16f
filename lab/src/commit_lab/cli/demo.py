"""`commit-lab demo`: a comparison in a few minutes."""

from __future__ import annotations

from pathlib import Path

from commit_tuning.cli.compare import finish, run_comparison
from commit_tuning.cli.display import say
from commit_tuning.cli.options import JobsOption, OutputOption

RECIPE = "nano-blip2"
SETTINGS = (
    "compare.methods=[constant, commit-clr]",
    "compare.seeds=2",
    "compare.screen_seeds=1",
    "compare.static_grid=null",
)


def demo(
    output: OutputOption = Path("commit-lab-demo"),
    jobs: JobsOption = None,
) -> None:
    """Tune a small model with Constant LR and with CoMMIT-CLR, and write a report. Takes a few minutes on two cores.

    Example:
      commit-lab demo --output demo
    """
    from commit_tuning.report.page import write_report
    from commit_tuning.train.recipe.load import load_recipe

    recipe = load_recipe(RECIPE, SETTINGS)
    best = min(recipe.compare.rates, key=lambda rate: abs(rate - recipe.train.learning_rate))
    recipe = load_recipe(RECIPE, [*SETTINGS, f"compare.rates=[{best}]"])
    comparison = run_comparison(recipe, output, jobs)
    say(f"report in {write_report(output)}")
    finish(comparison)

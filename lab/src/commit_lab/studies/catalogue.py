"""Every ablation: a question, and the comparisons that answer it.

All together are 146 runs, about two hours on one core: 116 on nano BLIP-2 of some 40 seconds, 30 on nano LLaVA of some
75. A run that two comparisons share is made once.
"""

from __future__ import annotations

from typing import Any

from commit_lab.studies.ablations import Plan, Study

BLIP2: dict[str, Any] = {"recipe": "iconqa-nano-blip2", "rates": (1e-3,)}  # what validation chose for Constant LR
LLAVA: dict[str, Any] = {"recipe": "iconqa-nano-llava", "rates": (3e-4,)}


TRUST_REGION = "commit.controller=trust-region"


def on_blip2(study: str, key: str, *values: object, settings: tuple[str, ...] = ()) -> tuple[Plan, ...]:
    """Plan CoMMIT-CLR and Constant LR on nano BLIP-2 along one axis."""
    return (Plan(name=f"{study}-nano-blip2", **BLIP2, settings=settings, axes=((key, values),)),)


def on_both(study: str, key: str, *values: object, settings: tuple[str, ...] = ()) -> tuple[Plan, ...]:
    """Plan the same on nano BLIP-2 and nano LLaVA."""
    return (
        *on_blip2(study, key, *values, settings=settings),
        Plan(name=f"{study}-nano-llava", **LLAVA, settings=settings, axes=((key, values),)),
    )


STUDIES: dict[str, Study] = {
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
        plans=on_blip2("probe-samples", "commit.probe.samples", 1, 4, 8, 16),
    ),
    "probe-interval": Study(
        question="How many optimizer steps between two measurements, and what does each choice cost?",
        plans=on_blip2("probe-interval", "commit.probe.interval", 1, 5, 20),
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
                axes=(("commit.controller", ("trust-region", "literal", "bounded", "compensated")),),
            ),
            Plan(
                name="controller-product-nano-blip2",
                **BLIP2,
                axes=(
                    ("commit.controller", ("bounded", "compensated")),
                    ("commit.controller.normalization", ("product",)),
                ),
            ),
        ),
    ),
    "drift-target": Study(
        question="How far should one step of a module move the output distribution, as a share of the loss?",
        plans=on_both(
            "drift-target", "commit.controller.drift_target", 3e-5, 1e-4, 2e-4, 5e-4, 2e-3, settings=(TRUST_REGION,)
        ),
    ),
    "kappa-target": Study(
        question="Which kappa should the trust region aim at: balance, as the paper says, or another one?",
        plans=on_both("kappa-target", "commit.controller.kappa_target", 0.1, 0.3, 1, 3, 10, settings=(TRUST_REGION,)),
    ),
    "batch-size": Study(
        question="Does the drift target have to change with the batch size?",
        plans=tuple(
            Plan(
                name=f"batch-size-{size}-nano-blip2",
                **BLIP2,
                settings=(f"train.batch_size={size}", TRUST_REGION),
                axes=(("commit.controller.drift_target", (5e-5, 2e-4, 8e-4)),),
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

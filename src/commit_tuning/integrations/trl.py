"""CoMMIT in TRL's `SFTTrainer`."""

from __future__ import annotations

from trl import SFTTrainer

from commit_tuning.integrations.transformers import CoMMITTrainerMixin


class CoMMITSFTTrainer(CoMMITTrainerMixin, SFTTrainer):  # type: ignore[misc]
    """TRL's `SFTTrainer` with CoMMIT: see `CoMMITTrainerMixin`.

    Example:
        Two lines of a script change::

            from commit_tuning.integrations.trl import CoMMITSFTTrainer
            trainer = CoMMITSFTTrainer(model=model, args=SFTConfig(...), train_dataset=dataset)
    """

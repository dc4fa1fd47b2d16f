"""Which parameters are whose, and the base learning rates by name."""

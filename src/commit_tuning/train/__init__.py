"""A run of the command line: recipe, training, checkpoints, record, evaluation."""

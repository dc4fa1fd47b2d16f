"""Several processes: sums over ranks, sharded parameters."""

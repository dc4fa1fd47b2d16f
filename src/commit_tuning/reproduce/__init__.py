"""The figures of the paper, made again from what the library computes."""

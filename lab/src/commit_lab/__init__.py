"""The paper's experiments: nano editions, tables and figures, studies and rivals."""

__version__ = "0.1.0"

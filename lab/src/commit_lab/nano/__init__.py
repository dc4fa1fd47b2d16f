"""The nano editions of the paper's models and datasets."""

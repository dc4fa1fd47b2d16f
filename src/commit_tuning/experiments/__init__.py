"""Experiments: recipe, run, record, comparison, report."""

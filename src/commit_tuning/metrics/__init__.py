"""Metrics of tasks; they know nothing of models or the method."""

"""Comparisons: methods over rates and seeds, on this machine or a cluster."""

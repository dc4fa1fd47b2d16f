"""Datasets in their official layouts, conversations, and rows of the hub."""

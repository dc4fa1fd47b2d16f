"""Ablations, hypotheses, theorems, the regulariser."""

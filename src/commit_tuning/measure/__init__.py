"""Drift: what one module's step does to the output distribution (Eq. 2-3)."""

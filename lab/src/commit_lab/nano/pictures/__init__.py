"""Nano datasets of pictures, painted from icon fonts."""

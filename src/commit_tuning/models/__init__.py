"""How transformers models are taken apart and probed fast, and the nano models."""

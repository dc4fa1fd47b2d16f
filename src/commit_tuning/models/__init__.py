"""Models of transformers by name, and a model that transformers lacks."""

"""Every multimodal family of transformers, tiny and random, and what must hold for each."""

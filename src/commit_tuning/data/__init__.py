"""Data: samples, their datasets and pictures and sounds, prompts, and the collator."""

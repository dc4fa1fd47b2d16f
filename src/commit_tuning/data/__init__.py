"""Data: the open icon catalogue, Nano-IconQA, the reader of IconQA's layout, and the collator."""

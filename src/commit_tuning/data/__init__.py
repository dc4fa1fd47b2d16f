"""Data: readers of datasets in their official layouts, the nano edition of IconQA and its icons, and the collator."""

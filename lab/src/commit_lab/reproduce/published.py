"""The paper's Tables 1 and 2, in percent (accuracy; ROUGE-L for the captions), and its words on the figures."""

from __future__ import annotations

_METHODS = ("constant", "feature-cd", "language-cd", "commit-clr", "commit")
_TABLE1 = {
    "blip2-aokvqa": (54.06, 57.99, 49.87, 60.44, 64.37),
    "blip2-iconqa": (37.16, 35.48, 34.47, 39.09, 38.65),
    "blip2-textvqa": (26.48, 18.00, 19.44, 27.66, 28.12),
    "salmonn-clothoaqa": (42.49, 45.80, 38.52, 52.86, 50.55),
    "salmonn-macs": (24.60, 22.41, 23.64, 23.81, 25.06),
    "salmonn-song-describer": (15.10, 5.70, 15.74, 15.07, 15.33),
    "internvl2-aokvqa": (76.59, 73.19, 79.47, 78.00, 80.52),
    "internvl2-iconqa": (80.94, 83.20, 81.60, 80.85, 82.87),
    "internvl2-textvqa": (65.22, 65.60, 65.08, 65.18, 67.00),
    "llava-aokvqa": (79.20, 77.64, 76.94, 77.82, 79.55),
    "llava-iconqa": (64.09, 64.16, 58.17, 65.78, 69.60),
    "llava-textvqa": (41.98, 43.34, 49.32, 47.80, 49.30),
}
TABLE1: dict[str, dict[str, float]] = {row: dict(zip(_METHODS, cells, strict=True)) for row, cells in _TABLE1.items()}
"""Row to method to number. Every method has a base rate of 1e-4."""

TABLE2: dict[str, dict[str, float]] = {
    "1e-05": {"blip2-aokvqa": 50.30, "blip2-textvqa": 27.58, "blip2-iconqa": 35.45},
    "0.0001": {"blip2-aokvqa": 54.06, "blip2-textvqa": 26.48, "blip2-iconqa": 37.16},
    "0.001": {"blip2-aokvqa": 45.24, "blip2-textvqa": 20.60, "blip2-iconqa": 34.93},
    "commit": {"blip2-aokvqa": 64.37, "blip2-textvqa": 28.12, "blip2-iconqa": 38.65},
}
"""Rate of Constant LR, or CoMMIT, to row to number."""

FIGURES = {
    "figure2": "kappa swings around 1 under Synced LR, the encoder's steps more than the language model's; raising "
    "either rate steadies all three.",
    "figure3": "raising the encoder's rate makes both gradients vanish, and the loss converges higher.",
    "figure4": "CoMMIT-CLR and CoMMIT are ahead early, most of all on IconQA, and end at a lower loss.",
    "figure5": "CoMMIT-CLR and CoMMIT converge to a lower loss, and are fastest ahead on MACS and SDD.",
    "figure6": "kappa has the smaller standard deviations under CoMMIT-CLR and CoMMIT, and is closest to 1 under the "
    "latter; Language LR up is steady, too.",
    "figure7": "drawn without a remark.",
}
"""What the paper says of its Figures 2 to 7, for which it prints no numbers (Sections 5 and 8)."""

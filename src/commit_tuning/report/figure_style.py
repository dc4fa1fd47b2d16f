"""The style of figures: one colour for each method everywhere, and SVG that stands inside a page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from commit_tuning.report.curves import Group
from commit_tuning.shown import visible_line
from commit_tuning.storage import replacing

COLOURS = {  # Okabe and Ito's colour-blind safe palette; the yellow is darkened to be legible on white
    "constant": "#4d4d4d",
    "commit-clr": "#0072b2",
    "commit": "#d55e00",
    "literal": "#7b3294",
    "literal-clr": "#882255",
    "static": "#e69f00",
    "feature-cd": "#009e73",
    "language-cd": "#cc79a7",
    "synced": "#999999",
    "language-lr-up": "#56b4e9",
    "encoder-lr-up": "#a89200",
}
OTHER = "#661100"  # a method of a plugin
LONGEST_LABEL = 50  # characters; of the widest letters, a figure holds as many
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
TWINS = {"commit": "commit-clr", "literal": "literal-clr"}  # with and without the regulariser: often one line
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.linewidth": 0.8,
    "axes.titlesize": 11,
    "axes.titlecolor": "#1f2430",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#3b4252",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8ec",
    "grid.linewidth": 0.8,
    "xtick.color": "#596170",
    "ytick.color": "#596170",
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "ytick.minor.size": 0,
    "svg.fonttype": "path",
    "svg.hashsalt": "commit-tuning",
    "path.simplify_threshold": 0.5,
}


def legend(groups: Sequence[Group]) -> list[dict[str, str]]:
    """Return label, colour and SVG dash pattern of each group, for the page's own legend."""
    patterns = ("none", "7 3", "2 2.5", "8 3 2 3")
    styles = [line_style(groups, index) for index in range(len(groups))]
    return [
        {"label": group.label, "colour": style["color"], "dashes": patterns[DASHES.index(style["linestyle"])]}
        for group, style in zip(groups, styles, strict=True)
    ]


def line_style(groups: Sequence[Group], index: int) -> dict[str, Any]:
    """Return the colour by method; another group of the same method, or one after its twin, gets other dashes."""
    method = groups[index].method
    same = (method, TWINS.get(method))
    earlier = sum(group.method in same for group in groups[:index])
    return {"color": COLOURS.get(method, OTHER), "linestyle": DASHES[earlier % len(DASHES)]}


def drawn(text: str) -> str:
    """Return an outside text as a label: short, no formula, and escapes for what the figures' font cannot draw."""
    line = "".join(sign if ord(sign) in _drawable() else ascii(sign)[1:-1] for sign in visible_line(text))
    short = line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 20]}…{line[-19:]}"
    return short.replace("$", r"\$")


@cache
def _drawable() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def save_png(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure as PNG at 150 dots per inch, whole or not at all.

    Args:
        figure: What to draw.
        path: Of the file; replaced.
        **options: Of `Figure.savefig`.

    Raises:
        UserError: The file cannot be written.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, **options)


def to_svg(figure: Figure, title: str) -> str:
    """Return the figure as an `<svg>` element that fills its container; its ids carry the title and stay unique."""
    buffer, canvas = io.StringIO(), FigureCanvasSVG(figure)
    canvas.print_figure(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)  # matplotlib's copies of labels
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    prefix = re.sub(r"\W+", "-", title.lower())
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)

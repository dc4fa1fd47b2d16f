"""Text from outside (data, recipes, errors, file names) made safe to show on a terminal, in Markdown and in a page."""

from __future__ import annotations

import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters but newline and tab, marks of direction, what has no width, and halves of a character."""

_MARKUP = re.compile(r"[\\`*_<|~&$]|\](?=[(\[])")


def visible(text: str) -> str:
    r"""Write characters that act or hide as escapes; everything else, newlines too, stays as it is.

    Example:
        >>> print(visible("red \x1b[31m, turned \u202e, half \ud800"))
        red \x1b[31m, turned \u202e, half \ud800
    """
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)


def visible_line(text: str) -> str:
    """Write a text as :func:`visible` does, on one line."""
    return visible(re.sub(r"[\t\r\n]+", " ", text))


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def markdown_text(text: str) -> Markdown:
    r"""Write a text on one line of Markdown, so that it reads as it is: no markup, link, picture, HTML or new cell.

    Example:
        >>> print(markdown_text("a|b *c* ![](http://d)"))
        a\|b \*c\* ![\](http://d)
    """
    return text if isinstance(text, Markdown) else Markdown(_MARKUP.sub(r"\\\g<0>", visible_line(text)))


def strong(text: str) -> Markdown:
    """Write a text in bold, in Markdown."""
    return Markdown(f"**{markdown_text(text)}**")

"""The errors that a user of the package can cause, and foreign texts as one line of them."""

import sys
import warnings
from collections.abc import Sequence


class UserError(Exception):
    """A fault of the input: one line that says what is wrong, where, and what to do.

    The command line prints the line and exits with code 2.
    """


class ConfigError(UserError, ValueError):
    """A configuration that is not valid; the message lists every fault at once.

    Attributes:
        faults: Every fault alone.
    """

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults) or (message,)


class PartitionError(UserError, ValueError):
    """A division of parameters into modules that is not complete, not disjoint, or not possible."""


class BatchError(UserError, ValueError):
    """A batch that cannot be measured: no labels, no answer positions, or not a mapping of tensors."""


class NoTargetError(BatchError):
    """Batches in which every label is -100, on all ranks."""


class ShardingError(UserError, RuntimeError):
    """A way to spread parameters over processes under which drift cannot be measured."""


def one_line(text: object, limit: int = 200) -> str:
    r"""Foreign text as one line that is safe to print: an exception of a library, a value, a name.

    Args:
        text: Anything; its `str` is taken.
        limit: The most letters that are kept; what is longer ends in `...`.

    Returns:
        The text with single spaces, and with an escape for every letter that does not print.

    Example:
        >>> one_line("a\n  b\x1b[2J"), one_line("abcdefgh", 5)
        ('a b\\x1b[2J', 'ab...')
    """
    words = " ".join(str(text)[: 2 * limit].split())
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def name_and_line(error: BaseException) -> str:
    """The class of an exception and its message, as one line."""
    return f"{type(error).__name__}: {one_line(error)}"


def warn(message: str) -> None:
    """Warn on behalf of the first caller outside of this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("commit_tuning.", "contextlib")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)

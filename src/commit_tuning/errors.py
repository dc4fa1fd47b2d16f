"""The errors that a user of the package can cause."""


class UserError(Exception):
    """A fault of the input: one line that says what is wrong, where, and what to do.

    The command line prints the line and exits with code 2.
    """


class ConfigError(UserError, ValueError):
    """A configuration that is not valid; the message lists every fault at once."""


class PartitionError(UserError, ValueError):
    """A division of parameters into modules that is not complete, not disjoint, or not possible."""


class BatchError(UserError, ValueError):
    """A batch that cannot be measured: no labels, no answer positions, or not a mapping of tensors."""


class NoAnswerError(BatchError):
    """Batches in which every label is -100, on all ranks."""


class ShardingError(UserError, RuntimeError):
    """A way to spread parameters over processes under which drift cannot be measured."""

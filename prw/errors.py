"""The errors that prw raises on purpose, and how their messages list names.

Each is also the builtin error that a caller would expect, so `except ValueError` keeps working:

    PrwError
    |-- ConfigError       (ValueError)     a setting has a value that cannot be used
    |-- TargetError       (ValueError)     the modules asked for are not in the model, or cannot carry experts
    |-- PoolError         (ValueError)     the pool has no such expert, has it already, or is empty
    |-- RoutingError      (RuntimeError)   a decision cannot be made, recorded or differentiated as asked
    |-- UnsupportedError  (RuntimeError)   the operation does not exist for routed experts
    |-- StorageError      (OSError)        a saved pool is missing, damaged, foreign, or does not fit
    `-- CurriculumError   (ValueError)     stages and pool do not belong together
"""

from __future__ import annotations

from collections.abc import Sequence


class PrwError(Exception):
    """Anything prw refuses to do."""


class ConfigError(PrwError, ValueError):
    """A setting has a value that cannot be used."""


class TargetError(PrwError, ValueError):
    """The modules asked for are not in the model, or cannot carry experts."""


class PoolError(PrwError, ValueError):
    """The pool has no such expert, has it already, or is empty."""


class RoutingError(PrwError, RuntimeError):
    """A decision cannot be made, recorded or differentiated as asked."""


class UnsupportedError(PrwError, RuntimeError):
    """The operation does not exist for routed experts."""


class StorageError(PrwError, OSError):
    """A saved pool is missing, damaged, foreign, or does not fit the model."""


class CurriculumError(PrwError, ValueError):
    """Stages and pool do not belong together."""


def first_few(names: Sequence[str], count: int = 3) -> str:
    """List the first few names for a message, and say how many more there are; "none" of none.

    Args:
        names: All names.
        count: How many are listed.
    """
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return (", ".join(names[:count]) or "none") + more

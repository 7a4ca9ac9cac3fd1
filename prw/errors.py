"""The errors that prw raises on purpose, and how their messages list names and explain wrong settings.

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

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


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


EXPECTED: Mapping[str, str] = {
    "literal_error": "expected {expected}",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected {ge} or more",
    "less_than_equal": "expected {le} or less",
    "less_than": "expected less than {lt}",
    "finite_number": "expected a finite number",
    "int": "expected a whole number",
    "float": "expected a number",
    "string_type": "expected text",
    "string_too_short": "expected at least {min_length} letters",
    "string_too_long": "expected at most {max_length} letters",
    "string_pattern_mismatch": "expected text that matches {pattern}",
    "path_type": "expected text, the path of a file",
    "model_type": "expected an object of names and values",
    "json_invalid": "not JSON ({error})",
    "missing": "missing",
    "is_instance_of": "expected a {class}",
}
"""What was expected, by pydantic's name of the fault; of numbers by the start of that name."""
ANY_NAME = "*"
"""Stands for the names of groups of settings that the user chooses."""


def fault_lines(
    error: ValidationError,
    model: type[BaseModel],
    *,
    hints: Mapping[str, str] | None = None,
    groups: Mapping[str, Iterable[str]] | None = None,
) -> list[str]:
    """Say in one line per fault which setting is wrong, what was expected and what was given.

    Args:
        error: What pydantic found.
        model: The class of the settings.
        hints: What to say of unknown settings, by name, instead of the setting most like them.
        groups: For fields that map names to settings: the names that exist; of others any name may.

    Returns:
        Lines without a final stop, as "pool.rank: expected 1 or more, got 0".
    """
    known = list(known_settings(model, groups or {}))
    return [fault_line(fault, known, hints or {}) for fault in error.errors()]


def fault_line(fault: ErrorDetails, known: Sequence[str], hints: Mapping[str, str]) -> str:
    """Explain one fault; `known` are the dotted names of all settings."""
    key, kind = ".".join(map(str, fault["loc"])), fault["type"]
    given = repr(fault["input"])
    given = given if len(given) <= 80 else f"{given[:77]}..."
    if kind == "extra_forbidden":
        return (
            f"{key}: {hints[key]}, got {given}" if key in hints else f"{key}: {unknown_setting(key, known)}"
        )
    limits = fault.get("ctx", {})
    words = EXPECTED.get(kind) or EXPECTED.get(kind.partition("_")[0])
    words = fault["msg"].removeprefix("Value error, ") if words is None else words.format(**limits)
    words = f"{key}: {words}" if key else words
    # A message about a whole group of settings already names its parts.
    whole = not key or isinstance(fault["input"], Mapping)
    return words if whole or kind in ("missing", "json_invalid") else f"{words}, got {given}"


def unknown_setting(key: str, known: Sequence[str]) -> str:
    """Say that a setting is unknown, and which one is most like it: in its group, else of its name."""
    known = [under_given_name(name, key) for name in known]
    parent, _, leaf = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    alike = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)
    near = siblings[alike[0]] if alike else next((n for n in known if n.rpartition(".")[2] == leaf), None)
    if near is not None:
        return f"unknown setting. Did you mean {near}?"
    place = f" of {parent}" if parent else ""
    return "unknown setting" + (f"; settings{place} are {', '.join(siblings)}" if siblings else "")


def known_settings(
    model: type[BaseModel], groups: Mapping[str, Iterable[str]], prefix: str = ""
) -> Iterator[str]:
    """List the dotted names of all settings of a class, those of nested classes included."""
    for name, field in model.model_fields.items():
        key, inner = f"{prefix}{name}", field.annotation
        of_dict: Any = get_args(inner)[1] if get_origin(inner) is dict else None
        if isinstance(of_dict, type) and issubclass(of_dict, BaseModel):
            for entry in groups.get(name, (ANY_NAME,)):
                yield from known_settings(of_dict, groups, f"{key}.{entry}.")
            continue
        yield key
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from known_settings(inner, groups, f"{key}.")


def under_given_name(known: str, key: str) -> str:
    """Put the user's own name of a group into a known setting, where `key` is of that group."""
    before, star, after = known.partition(f".{ANY_NAME}.")
    if not star or not key.startswith(f"{before}."):
        return known
    return f"{before}.{key.removeprefix(f'{before}.').partition('.')[0]}.{after}"

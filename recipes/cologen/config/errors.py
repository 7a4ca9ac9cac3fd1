"""Turns pydantic's errors into sentences: the dotted key, what was expected, what came, the nearest key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from recipes.cologen.errors import CologenError
from recipes.cologen.stages import COLOGEN_STAGES


class ConfigError(CologenError, ValueError):
    """A config cannot be read: a file, a key or a value is wrong."""


ANY_NAME = "*"
"""Stands for the names of groups that the user chooses, such as data sets."""
_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "literal_error": lambda limits: f"expected {limits['expected']}",
    "greater_than": lambda limits: f"expected more than {limits['gt']}",
    "greater_than_equal": lambda limits: f"expected {limits['ge']} or more",
    "less_than_equal": lambda limits: f"expected {limits['le']} or less",
    "less_than": lambda limits: f"expected less than {limits['lt']}",
    "finite_number": lambda _: "expected a finite number",
    "model_type": lambda _: "expected an object of names and values",
    "string_type": lambda _: "expected text",
    "path_type": lambda _: "expected text, the path of a picture",
    "string_too_long": lambda limits: f"expected at most {limits['max_length']} letters",
    "string_pattern_mismatch": lambda _: (
        "expected letters, digits and . _ -, a letter or digit or _ first (it names a file)"
    ),
}
"""What was expected, by pydantic's name of the fault."""


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of every setting of a settings class."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        inner: Any = field.annotation
        if get_origin(inner) is dict:
            values = get_args(inner)[1]
            if not (isinstance(values, type) and issubclass(values, BaseModel)):
                yield key
                continue
            # Stages have their names; other groups are named by the user.
            for entry in COLOGEN_STAGES if name == "stages" else (ANY_NAME,):
                yield from known_keys(values, f"{key}.{entry}.")
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            yield key
            yield from known_keys(inner, f"{key}.")
        else:
            yield key


def nearest_key(key: str, model: type[BaseModel]) -> str | None:
    """The known setting most like `key`: a like name in its group, else the same name in another."""
    known = [_named_like(name, key) for name in known_keys(model)]
    parent, _, leaf = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    alike = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)
    if alike:
        return siblings[alike[0]]
    return next((name for name in known if name.rpartition(".")[2] == leaf), None)


def _named_like(known: str, key: str) -> str:
    """A known key with the user's own name of a group, where it has one, as `key` has it."""
    before, star, after = known.partition(f".{ANY_NAME}.")
    given = key.removeprefix(f"{before}.").partition(".")[0] if key.startswith(f"{before}.") else ANY_NAME
    return f"{before}.{given}.{after}" if star else known


def _neighbours(key: str, model: type[BaseModel]) -> str:
    parent = key.rpartition(".")[0]
    known = [_named_like(name, key) for name in known_keys(model)]
    names = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
    return f" {parent or 'The config'} knows {', '.join(names)}." if names else ""


def explain(error: ValidationError, model: type[BaseModel], origin: str) -> str:
    """One line for each fault of the settings read from `origin`; what is missing may be given by `--set`."""
    lines = [f"{origin}:"]
    for fault, line in zip(error.errors(), fault_lines(error, model), strict=True):
        key = _key(fault)
        fix = f"; give it in the file, or with --set {key}=VALUE" if fault["type"] == "missing" else ""
        lines.append(f"  {line}{fix}" + ("" if line.endswith((".", "?")) else "."))
    return "\n".join(lines)


def fault_lines(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A line for each fault: the key, what was expected, what came.

    Args:
        error: What pydantic found.
        model: The class of the settings that were read.
    """
    return [_line(fault, model) for fault in error.errors()]


def _key(fault: ErrorDetails) -> str:
    return ".".join(map(str, fault["loc"]))


def _line(fault: ErrorDetails, model: type[BaseModel]) -> str:
    key, kind = _key(fault), fault["type"]
    if kind == "extra_forbidden":
        near = nearest_key(key, model)
        return f"{key}: unknown setting." + (f" Did you mean {near}?" if near else _neighbours(key, model))
    if kind == "json_invalid":
        return f"not JSON ({fault.get('ctx', {}).get('error', fault['msg'])})"
    place = f"{key}: " if key else ""
    if kind == "missing":
        return f"{place}missing"
    if kind.startswith("int_"):
        words = "expected a whole number"
    elif kind.startswith("float_"):
        words = "expected a number"
    else:
        words = _WORDS[kind](fault.get("ctx", {})) if kind in _WORDS else fault["msg"]
    words = words.removeprefix("Value error, ")
    if not key or isinstance(fault["input"], Mapping):  # a message about a whole group names its parts
        return f"{place}{words}"
    return f"{place}{words}, got {_short(repr(fault['input']))}"


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."

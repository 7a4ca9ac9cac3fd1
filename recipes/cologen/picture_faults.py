"""Says in words what is wrong with a picture's settings or a job of a batch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda _: "is missing",
    "literal_error": lambda limits: f"expected {limits['expected']}",
    "greater_than": lambda limits: f"expected more than {limits['gt']}",
    "greater_than_equal": lambda limits: f"expected {limits['ge']} or more",
    "less_than_equal": lambda limits: f"expected {limits['le']} or less",
    "less_than": lambda limits: f"expected less than {limits['lt']}",
    "finite_number": lambda _: "expected a finite number",
    "string_type": lambda _: "expected text",
    "path_type": lambda _: "expected text, the path of a picture",
    "string_too_long": lambda limits: f"expected at most {limits['max_length']} letters",
    "string_pattern_mismatch": lambda _: (
        "expected letters, digits and . _ -, a letter or digit or _ first (it names a file)"
    ),
}
"""What is said of a fault, by pydantic's name of it."""


def in_words(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A line for each fault: the key, what was expected, what came.

    Args:
        error: What pydantic says.
        model: The class of the settings that were read.
    """
    return [_line(fault, model) for fault in error.errors()]


def _line(fault: ErrorDetails, model: type[BaseModel]) -> str:
    key = ".".join(map(str, fault["loc"]))
    kind, came = fault["type"], repr(fault["input"])
    if kind == "extra_forbidden":
        return f"{key}: unknown key.{_known(fault, model)}"
    if kind == "json_invalid":
        return f"not JSON ({fault.get('ctx', {}).get('error', fault['msg'])})"
    if kind.startswith("int_"):
        words = "expected a whole number"
    elif kind.startswith("float_"):
        words = "expected a number"
    else:
        words = _WORDS[kind](fault.get("ctx", {})) if kind in _WORDS else fault["msg"]
    place = f"{key}: " if key else ""
    return f"{place}{words}" if kind == "missing" else f"{place}{words}, got {_short(came)}"


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _known(fault: ErrorDetails, model: type[BaseModel]) -> str:
    """The nearest key, and all that there are."""
    holder: Any = model
    for part in fault["loc"][:-1]:
        holder = holder.model_fields[part].annotation
    keys = tuple(holder.model_fields)
    near = difflib.get_close_matches(str(fault["loc"][-1]), keys, n=1)
    return (f" Did you mean {near[0]}?" if near else "") + f" Known are {', '.join(keys)}"

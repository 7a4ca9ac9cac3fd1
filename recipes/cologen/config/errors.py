"""Explains wrong settings of a run: the dotted key, what was expected, what came, the nearest key."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

import prw.errors
from recipes.cologen.errors import CologenError
from recipes.cologen.stages import COLOGEN_STAGES

GROUPS = {"stages": COLOGEN_STAGES}
"""Names of the groups of settings whose names the user does not choose."""


class ConfigError(CologenError, ValueError):
    """A config cannot be read: a file, a key or a value is wrong."""


def explain(error: ValidationError, model: type[BaseModel], origin: str) -> str:
    """One line for each fault of the settings read from `origin`; what is missing may be given by `--set`."""
    lines = [f"{origin}:"]
    for fault, line in zip(error.errors(), fault_lines(error, model), strict=True):
        key = ".".join(map(str, fault["loc"]))
        fix = f"; give it in the file, or with --set {key}=VALUE" if fault["type"] == "missing" else ""
        lines.append(f"  {line}{fix}" + ("" if line.endswith((".", "?")) else "."))
    return "\n".join(lines)


def fault_lines(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A line for each fault: the key, what was expected, what came.

    Args:
        error: What pydantic found.
        model: The class of the settings that were read.
    """
    return prw.errors.fault_lines(error, model, groups=GROUPS)

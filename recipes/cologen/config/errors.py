"""Turns what pydantic says about wrong settings into sentences: the dotted key, the nearest one, the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from recipes.cologen.errors import CologenError
from recipes.cologen.stages import COLOGEN_STAGES


class ConfigError(CologenError, ValueError):
    """A config cannot be read: a file, a key or a value is wrong."""


ANY_NAME = "*"
"""Stands for the names of groups that the user chooses, such as data sets."""


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
    """One line for each thing that is wrong with the settings read from `origin`."""
    lines = [f"{origin}:"]
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            near = nearest_key(key, model)
            lines.append(
                f"  {key}: unknown setting." + (f" Did you mean {near}?" if near else _neighbours(key, model))
            )
        elif fault["type"] == "missing":
            lines.append(f"  {key}: missing; give it in the file, or with --set {key}=VALUE.")
        elif not key or isinstance(fault["input"], Mapping):  # a message about a whole group names its parts
            key = f"{key}: " if key else ""
            lines.append(f"  {key}{fault['msg'].removeprefix('Value error, ')}.")
        else:
            lines.append(f"  {key}: {fault['msg']}, got {fault['input']!r}.")
    return "\n".join(lines)

"""Lets one config build on another: `extends: flux_dev` at its top takes that config's settings as its own.

Groups of settings are merged, the extending config's values win. Data sets have names of the user's own, so
`data.sets` and `data.held_out_sets` are not merged: whoever gives them gives all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recipes.cologen.config.errors import ConfigError

EXTENDS = "extends"
WHOLE = ("sets", "held_out_sets")
"""Groups that are taken whole, never merged."""


def extended(
    values: Mapping[str, Any], path: Path, find: Callable[[str], tuple[Path, Mapping[str, Any]]]
) -> dict[str, Any]:
    """Settings on top of those of the config that they extend, and of the one that that extends, and so on.

    Args:
        values: What the file `path` holds.
        path: Of the config.
        find: Gives the file of another config, by name or path, and what it holds.

    Raises:
        ConfigError: `extends` names no config, or configs extend each other in a circle.
    """
    chain, result = [path], dict(values)
    while EXTENDS in result:
        wanted = result.pop(EXTENDS)
        if not isinstance(wanted, str):
            raise ConfigError(f"{chain[-1]}: {EXTENDS} should name a config, got {wanted!r}.")
        base, inherited = find(wanted)
        if base in chain:
            names = " -> ".join(str(file) for file in [*chain, base])
            raise ConfigError(f"configs extend each other in a circle: {names}. Take one {EXTENDS} out.")
        chain.append(base)
        result = _merged(inherited, result)
    return result


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both and key not in WHOLE else value
    return merged

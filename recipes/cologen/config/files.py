"""Reads settings from YAML files and the command line: duplicate keys, `extends`, `--set KEY=VALUE`.

`extends: flux_dev` at the top of a config takes that config's settings as its own. Groups of settings are
merged, and the extending config's values win. Data sets have names of the user's own, so `data.sets` and
`data.held_out_sets` are not merged: give all of them. Whether a key exists is checked
later, for all keys at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from recipes.cologen.config.errors import ConfigError
from recipes.cologen.stages import stage_index

EXTENDS = "extends"
WHOLE = ("sets", "held_out_sets")
"""Groups that are taken whole, never merged."""


class _OnceOnly(yaml.SafeLoader):
    """PyYAML's safe loader, of which the last of two equal keys would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a second key of the same name, with its line."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice; keep one of them", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Parse YAML whose keys are given once each.

    Raises:
        yaml.YAMLError: It is not YAML, or a key is given twice.
    """
    return yaml.load(text, _OnceOnly)


def read_yaml(path: Path) -> Any:
    """Read a YAML file in UTF-8.

    Raises:
        ConfigError: The file cannot be read, is not UTF-8, not YAML, or gives a key twice.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not in UTF-8 ({error}). Save it again in that encoding.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML that can be used: {error}") from error


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


def with_data(overrides: Sequence[str], place: str | None) -> list[str]:
    """Overrides together with `--data PLACE`, which takes the place of the data that the config names.

    Data sets that the config names are then not read; those that an override names would be, so they are
    refused beside another place.

    Args:
        overrides: As given to `--set`.
        place: As given to `--data`: plain text, so it is quoted for YAML; None without it.
    """
    if place is None:
        return list(overrides)
    instead = [] if place == "sets" else ["data.sets={}"]
    return [*instead, *overrides, f"data.source={json.dumps(place, ensure_ascii=False)}"]


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one value of plain settings by its dotted name, in place; `stages.*` reaches every stage.

    `stages=[NAME, ...]` keeps these stages and leaves the others out.

    Args:
        values: Settings with all stages filled in.
        override: `KEY=VALUE`; the value is YAML.

    Raises:
        ConfigError: It is not of that form, or the key runs through a value.
        UnknownStageError: It names a stage that the config does not have.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set expects KEY=VALUE, for example stages.control.lr=1e-3, got {override!r}.")
    group, *rest = key.strip().split(".")
    if group == "stages" and rest[:1] == ["*"]:
        for name in values["stages"]:
            _assign(values, [group, name, *rest[1:]], text)
        return
    if group == "stages" and not rest and isinstance(kept := _value(key, text), list):
        _keep_stages(values, kept)
        return
    if group == "stages" and rest:
        stage_index(rest[0], tuple(values["stages"]))
    _assign(values, [group, *rest], text)


def _keep_stages(values: dict[str, Any], kept: list[Any]) -> None:
    for name in kept:
        stage_index(str(name), tuple(values["stages"]))
    values["stages"] = {name: stage for name, stage in values["stages"].items() if name in kept}


def _value(key: str, text: str) -> Any:
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}={text}: the value is not YAML ({error}).") from error


def _assign(values: dict[str, Any], keys: list[str], text: str) -> None:
    for depth, key in enumerate(keys[:-1], start=1):
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"--set {'.'.join(keys)}: {'.'.join(keys[:depth])} is a value, not a group of settings."
            )
        values = inner
    values[keys[-1]] = _value(".".join(keys), text)

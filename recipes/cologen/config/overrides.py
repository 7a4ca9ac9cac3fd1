"""Applies `--set KEY=VALUE` to plain settings; whether the key exists is checked later, with all others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

from recipes.cologen.config.errors import ConfigError
from recipes.cologen.config.files import parse_yaml
from recipes.cologen.stages import stage_index


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

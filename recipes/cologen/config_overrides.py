"""Applies `--set KEY=VALUE` to plain settings; whether the key exists is checked later, with all others."""

from __future__ import annotations

from typing import Any

import yaml

from recipes.cologen.config_errors import ConfigError
from recipes.cologen.config_yaml import parse_yaml
from recipes.cologen.stages import stage_index


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one value of plain settings by its dotted name, in place; `stages.*` reaches every stage.

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
    if group == "stages" and rest:
        stage_index(rest[0], tuple(values["stages"]))
    _assign(values, [group, *rest], text)


def _assign(values: dict[str, Any], keys: list[str], text: str) -> None:
    for depth, key in enumerate(keys[:-1], start=1):
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"--set {'.'.join(keys)}: {'.'.join(keys[:depth])} is a value, not a group of settings."
            )
        values = inner
    try:
        values[keys[-1]] = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {'.'.join(keys)}={text}: the value is not YAML ({error}).") from error

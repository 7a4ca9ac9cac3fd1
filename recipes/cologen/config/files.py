"""Reads settings from YAML, and refuses what plain PyYAML passes over: a key that is given twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from recipes.cologen.config.errors import ConfigError


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

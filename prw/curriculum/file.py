"""Stages as plain values and as a JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prw.curriculum.stage import Stage
from prw.errors import CurriculumError, StorageError

REQUIRED = ("name", "rho", "alpha", "steps", "lr")


def stages_from(values: Any) -> list[Stage]:
    """Make stages of plain values: {"stages": [{"name": ..., "rho": ..., ...}, ...]}.

    Raises:
        CurriculumError: if the values are not of that form; says where.
        ConfigError: if a stage's setting cannot be used.
    """
    if not isinstance(values, Mapping) or set(values) != {"stages"} or not isinstance(values["stages"], list):
        came = ", ".join(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
        raise CurriculumError(f'a curriculum is {{"stages": [...]}}, one entry per stage; got {came}.')
    return [stage_from(entry, place) for place, entry in enumerate(values["stages"])]


def stage_from(entry: Any, place: int) -> Stage:
    """Make one stage; `place` is for the error."""
    known = tuple(Stage.model_fields)
    if not isinstance(entry, Mapping):
        raise CurriculumError(f"stage {place} is a {type(entry).__name__}, expected settings by name.")
    unknown = [str(key) for key in entry if key not in known]
    missing = [key for key in REQUIRED if key not in entry]
    if unknown or missing:
        raise CurriculumError(
            f"stage {place} ({entry.get('name', 'without a name')}) cannot be read: missing "
            f"{', '.join(missing) or 'nothing'}, unknown {', '.join(unknown) or 'nothing'}. Settings of a "
            f"stage are {', '.join(known)}."
        )
    return Stage(**entry)


def write_stages(path: Path, values: dict[str, Any]) -> None:
    """Write plain values as JSON beside their place and rename them into it.

    Raises:
        StorageError: if the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StorageError(f"the curriculum cannot be written to {path}: {error}") from error


def read_stages(path: Path) -> Any:
    """Read plain values from a JSON file.

    Raises:
        StorageError: if the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} holds no curriculum: {error}") from error

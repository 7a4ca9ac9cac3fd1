"""A stage: one task with its expert, routing target and optimiser settings; and stages as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prw.config import explain, one_form
from prw.errors import ConfigError, CurriculumError, StorageError
from prw.storage.atomic import write_text


class Stage(BaseModel):
    """One task of a curriculum; its expert has its name.

    Source: CoLoGen (arXiv 2602.22150), section 3 and table 1: rho 1 and alpha 0 in the first stage, 0.8 and
    0.5 later.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    """Name of the stage and of its expert."""
    rho: float = Field(ge=0, le=1)
    """Target share of the newest expert."""
    alpha: float = Field(ge=0)
    """Weight of the veteran loss."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
    lr: float = Field(gt=0)
    """Learning rate."""
    init: str | None = None
    """Where the expert starts: None or "zero" at zero output, else as a copy of that earlier expert."""

    def __init__(
        self, name: str, *, rho: float, alpha: float, steps: int, lr: float, init: str | None = None
    ) -> None:
        """Check and keep the settings.

        Raises:
            ConfigError: if a value cannot be used.
        """
        try:
            name, init = one_form(name), init and one_form(init)
            super().__init__(name=name, rho=rho, alpha=alpha, steps=steps, lr=lr, init=init)
        except ValidationError as error:
            raise ConfigError(explain(error, type(self))) from error


def stages_from(values: Any) -> list[Stage]:
    """Make stages of plain values: {"stages": [{"name": ..., "rho": ..., ...}, ...]}."""
    if not isinstance(values, Mapping) or set(values) != {"stages"} or not isinstance(values["stages"], list):
        found = ", ".join(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
        raise CurriculumError(f'a curriculum is {{"stages": [...]}}, one entry per stage; got {found}.')
    return [stage_from(entry, f"stage {index}") for index, entry in enumerate(values["stages"])]


def stage_from(entry: Any, place: str) -> Stage:
    """Make one stage of plain values; `place` is for the error."""
    if not isinstance(entry, Mapping):
        raise CurriculumError(f"{place} is a {type(entry).__name__}, expected settings by name.")
    fields = Stage.model_fields
    unknown = [str(key) for key in entry if key not in fields]
    missing = [key for key, field in fields.items() if field.is_required() and key not in entry]
    if unknown or missing:
        raise CurriculumError(
            f"{place} ({entry.get('name', 'without a name')}) cannot be read: missing "
            f"{', '.join(missing) or 'nothing'}, unknown {', '.join(unknown) or 'nothing'}. Settings of a "
            f"stage are {', '.join(fields)}."
        )
    return Stage(**entry)


def write_stages(path: Path, values: dict[str, Any]) -> None:
    """Write plain values as a JSON file, all or nothing."""
    try:
        write_text(path, json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise StorageError(f"the curriculum cannot be written to {path}: {error}") from error


def read_stages(path: Path) -> Any:
    """Read plain values from a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} holds no curriculum: {error}") from error

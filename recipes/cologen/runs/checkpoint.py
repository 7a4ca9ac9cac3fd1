"""A stage's checkpoint: its state, and a folder that a kill at any moment leaves whole, old or new."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from prw.storage.atomic import replaced_folder
from recipes.cologen.errors import RunFolderError
from recipes.cologen.runs.files import STATE


class StageState(BaseModel):
    """How far a stage has come."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    step: int = Field(default=0, ge=0)
    """Optimiser steps done in this stage."""
    position: int = Field(default=0, ge=0)
    """Draws given out in this stage, over all ranks."""
    metrics_length: int = Field(default=0, ge=0)
    """Bytes of metrics.jsonl when this was saved."""
    seconds: float = Field(default=0.0, ge=0)
    """Time this stage has taken so far."""
    skipped_steps: int = Field(default=0, ge=0)
    """Steps of this stage that were skipped because loss or gradient was not finite."""
    skipped_in_a_row: int = Field(default=0, ge=0)
    """Of these, how many came last, one after another."""
    window: tuple[tuple[float, float, float, float], ...] = ()
    """What the steps since the last row of metrics.jsonl measured on this rank (step.StepLosses)."""


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_rng() -> dict[str, Any]:
    """The state of every random generator, as plain values and tensors."""
    version, words, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": [name, keys.tolist(), place, has_gauss, cached],  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Put every random generator back where `capture_rng` found it."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    name, keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), place, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class ForeignCheckpointError(RunFolderError):
    """A checkpoint does not belong to this run, or was not written by this recipe."""


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Replace `folder` by what `write` puts into a new one, all or nothing.

    Raises:
        OSError: There is no room, or the disk fails; what was there is kept, and nothing half-written.
    """
    try:
        with replaced_folder(folder) as new:
            write(new)
    except SafetensorError as error:
        raise OSError(f"{folder}: {error}") from error


def write_state(folder: Path, state: StageState, fingerprint: str) -> None:
    """Write where a stage is, and of which run, as state.json."""
    content = {"format": "cologen-stage-1", "fingerprint": fingerprint, **state.model_dump()}
    (folder / STATE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_state(folder: Path, fingerprint: str) -> StageState:
    """Read state.json.

    Raises:
        ForeignCheckpointError: It is missing, in another format, or of another run.
    """
    file = folder / STATE
    fix = f"Remove {folder} to start the stage anew, or give another --output."
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ForeignCheckpointError(
            f"{folder} is no checkpoint of this recipe: {file.name}: {error}. {fix}"
        ) from error
    if not isinstance(content, dict) or content.pop("format", None) != "cologen-stage-1":
        raise ForeignCheckpointError(
            f"{file} is not in the format cologen-stage-1, so another program or version wrote it. {fix}"
        )
    found = content.pop("fingerprint", None)
    if found != fingerprint:
        raise ForeignCheckpointError(
            f"{folder} belongs to another run: its fingerprint is {found}, this run's is {fingerprint}. {fix}"
        )
    try:
        return StageState.model_validate(content)
    except ValidationError as error:
        raise ForeignCheckpointError(f"{file} does not say where a stage is: {error}. {fix}") from error


def read_stage_name(folder: Path) -> str | None:
    """The stage that a folder's state.json names, of any run; None where it cannot be read."""
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    name = content.get("stage") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


def save_tensors(folder: Path, name: str, values: dict[str, Any]) -> None:
    """Write tensors and plain values, as torch saves them.

    Raises:
        OSError: There is no room, or the disk fails.
    """
    file = folder / f"{name}.pt"
    try:
        torch.save(values, file)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(f"{file} cannot be written ({error})") from error


def load_tensors(folder: Path, name: str) -> dict[str, Any]:
    """Read what `save_tensors` wrote; nothing in the file is executed.

    Raises:
        ForeignCheckpointError: The file is missing or cannot be read.
    """
    file = folder / f"{name}.pt"
    try:
        values: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        raise ForeignCheckpointError(
            f"{file} cannot be read ({type(error).__name__}: {error}). Remove {folder} to start the stage "
            "anew."
        ) from error
    return values

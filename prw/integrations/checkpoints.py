"""Finds how far a run of Hugging Face Trainers has come, one folder per stage, and prepares it to resume."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import nn

from prw.config import one_form
from prw.errors import StorageError
from prw.storage.atomic import write_text
from prw.storage.folder import read_config

STATE = "trainer_state.json"
"""What a Trainer writes last into a checkpoint; one without it was cut off."""
WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEX = "model.safetensors.index.json"


class Progress(NamedTuple):
    """Where a run is.

    Attributes:
        pool: Folder of the pool.
        checkpoint: Folder of the Trainer's checkpoint in the middle of a stage; None at a stage's end.
    """

    pool: Path
    checkpoint: Path | None


def latest(folder: Path, stages: Iterable[str], adapter: str) -> Progress | None:
    """Find the latest pool of a run: of its last stage that has a finished one or a whole checkpoint.

    Args:
        folder: The run's folder, with a folder per stage.
        stages: Names of the stages, in their order.
        adapter: Name of the PEFT adapter.

    Returns:
        Where the run is, or None if it has not begun.
    """
    places = {one_form(place.name): place for place in folder.iterdir()} if folder.is_dir() else {}
    for stage in reversed(list(stages)):
        place = places.get(stage, folder / stage)
        if holds_pool(place):
            return Progress(place, None)
        for checkpoint in checkpoints(place):
            pool = pool_in(checkpoint, adapter)
            if (checkpoint / STATE).is_file() and pool is not None:
                return Progress(pool, checkpoint)
    return None


def pools_of_others(folder: Path, stages: Iterable[str], adapter: str) -> list[str]:
    """Name the folders with pools, finished or in a checkpoint, that belong to none of the stages."""
    known = set(stages)
    return sorted(
        place.name
        for place in (folder.iterdir() if folder.is_dir() else ())
        if place.is_dir()
        and one_form(place.name) not in known
        and (holds_pool(place) or any(pool_in(checkpoint, adapter) for checkpoint in checkpoints(place)))
    )


def checkpoints(folder: Path) -> list[Path]:
    """List a Trainer's checkpoints, newest first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def pool_in(checkpoint: Path, adapter: str) -> Path | None:
    """Find the pool in a checkpoint: PEFT puts the adapter "default" on top and others into folders."""
    return next((folder for folder in (checkpoint / adapter, checkpoint) if holds_pool(folder)), None)


def holds_pool(folder: Path) -> bool:
    """Say whether a folder is that of a saved pool."""
    return (folder / CONFIG_NAME).is_file() and read_config(folder).get("peft_type") == "PRW"


def let_trainer_read(checkpoint: Path, model: nn.Module) -> None:
    """Let `Trainer.train` resume from a checkpoint of a model with injected adapters.

    transformers saves such a model as its adapter alone, and its Trainer then looks for the index of a whole
    model (`load_sharded_checkpoint`). The index written here maps every weight to the adapter's file. That
    file has no weights of the base, and those of the pool under PEFT's names, so the Trainer reads it without
    changing anything; prw has loaded the pool already.
    """
    has_whole = any((checkpoint / name).exists() for name in WHOLE)
    if isinstance(model, PeftModel) or has_whole or (checkpoint / INDEX).exists():
        return
    note = "for Trainer.train(resume_from_checkpoint=...); the weights of the base are not in this folder"
    index = {
        "metadata": {"prw": note},
        "weight_map": dict.fromkeys(model.state_dict(), SAFETENSORS_WEIGHTS_NAME),
    }
    try:
        write_text(checkpoint / INDEX, json.dumps(index))
    except OSError as error:
        raise StorageError(f"{checkpoint} cannot be written to, which resuming needs: {error}") from error

"""Loads a run's base, and the pool that one of its stages ended with."""

from __future__ import annotations

from pathlib import Path

import torch

import prw
from recipes.cologen.config.run import RunConfig
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.flux.families import load_base_model
from recipes.cologen.flux.locate import locate_base
from recipes.cologen.flux.placement import place
from recipes.cologen.runs.checkpoint import ForeignCheckpointError


def load_base(config: RunConfig, device: torch.device, held_on: torch.device | None = None) -> FluxBase:
    """Load the frozen base, as the machine's settings say.

    Args:
        config: Of the run.
        device: Where the base computes.
        held_on: Where its transformer lies until it is split over processes; None: on the device.

    Raises:
        BaseModelError: It is missing, or is no FLUX.
        MachineError: A setting asks for what this machine lacks.
    """
    model = load_base_model(
        base_folder(config),
        dtype=getattr(torch, config.base.dtype),
        max_text_tokens=config.base.max_text_tokens,
        quantisation=config.base.quantisation,
    )
    model.long_prompts = config.long_prompts
    place(model, config.machine, device, device if held_on is None else held_on)
    return model


def base_folder(config: RunConfig) -> Path:
    """The folder of the base, fetched from the hub if it is not here.

    Raises:
        BaseModelError: It is neither here nor there.
    """
    return locate_base(config.base.path, config.base.revision, config.base_path)


def load_stage(model: FluxBase, pool: Path, stage: str) -> prw.Weave:
    """Weave the pool that a stage ended with into the base.

    Raises:
        ForeignCheckpointError: It is damaged or does not fit; says how to get it back.
    """
    try:
        return prw.load(model.transformer, pool)
    except prw.StorageError as error:
        raise ForeignCheckpointError(
            f"the pool that stage {stage!r} ended with cannot be read: {error} If you have no copy of it, "
            f"train the run again with --restart {stage}, which keeps the stages before."
        ) from error

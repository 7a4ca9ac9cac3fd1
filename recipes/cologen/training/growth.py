"""Makes the base and its pool of experts ready for a stage: loads, resumes, grows the pool by an expert."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

import prw
from recipes.cologen.config.run import RunConfig
from recipes.cologen.data.seeding import derive_seed
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.runs.checkpoint import ForeignCheckpointError, StageState, read_state, seed_all
from recipes.cologen.runs.files import POOL, stage_file
from recipes.cologen.runs.folder import RunFolder
from recipes.cologen.runs.loading import load_base, load_stage
from recipes.cologen.training.distributed.parallel import waits_for_split


class OpenedPool(NamedTuple):
    """A pool as the folder has it, and where in its newest stage it is."""

    weave: prw.Weave
    state: StageState
    resumed: bool
    """Whether optimiser and random state are still to be read from checkpoints/latest."""


def load_base_to_train(config: RunConfig, device: torch.device) -> FluxBase:
    """Load the frozen base as `load_base`; what FSDP2 will split stays in the machine's memory until then."""
    return load_base(config, device, torch.device("cpu") if waits_for_split() else None)


def open_pool(config: RunConfig, folder: RunFolder, model: FluxBase, name: str) -> OpenedPool:
    """Weave the pool into the base as it was when the folder was last written, for training stage `name`.

    Raises:
        ForeignCheckpointError: A checkpoint belongs to another run or cannot be read.
    """
    if folder.latest.exists():
        state = read_state(folder.latest, folder.ledger.fingerprint)
        if state.stage == name:
            try:
                weave = prw.load(model.transformer, folder.latest / POOL)
            except prw.StorageError as error:
                raise ForeignCheckpointError(
                    f"the last checkpoint cannot be read: {error} Remove {folder.latest} to start stage "
                    f"{name!r} anew; finished stages are kept."
                ) from error
            return OpenedPool(weave, state, resumed=True)
    weave = _finished_pool(config, folder, model, name)
    return OpenedPool(weave, begin_state(config, folder, name), resumed=False)


def curriculum(config: RunConfig) -> prw.Curriculum:
    """The config's stages as prw walks them."""
    before = [None, *config.stage_names]
    return prw.Curriculum(
        [
            prw.Stage(
                name,
                rho=stage.rho,
                alpha=stage.alpha,
                steps=stage.steps,
                lr=stage.lr,
                init=earlier if stage.init == "previous" else stage.init,
            )
            for (name, stage), earlier in zip(config.stages.items(), before, strict=False)
        ]
    )


def grow(config: RunConfig, model: FluxBase, walk: Iterator[prw.Stage], name: str, rank: int) -> None:
    """Go on to a stage: the pool gets its expert, unless it is in the middle of that stage.

    Random numbers are seeded anew, by the stage's name, so it makes no difference whether the stages before
    ran in this process or in another. Experts start alike on all ranks; the noise of their routers differs.
    """
    seed_all(derive_seed(config.data.seed, "growth", name))
    stage = next(walk)
    if stage.name != name:
        raise ForeignCheckpointError(
            f"the pool goes on with stage {stage.name!r}, the run's folder with {name!r}: its checkpoints "
            "were exchanged. Put this run's own back, or give another --output."
        )
    seed_all(derive_seed(config.data.seed, "stage", name, rank))
    # Routers add their noise in training mode only; the base itself has no dropout.
    model.transformer.to(model.device).train()


def begin_state(config: RunConfig, folder: RunFolder, name: str) -> StageState:
    """The state of a stage before its first step."""
    place = config.stage_names.index(name)
    if place == 0:
        return StageState(stage=name)
    length = _stage_json(folder, config.stage_names[place - 1])["metrics_length"]
    return StageState(stage=name, metrics_length=length)


def _finished_pool(config: RunConfig, folder: RunFolder, model: FluxBase, name: str) -> prw.Weave:
    place = config.stage_names.index(name)
    if place == 0:
        return prw.inject(model.transformer, target="kv", **config.pool.model_dump())
    previous = config.stage_names[place - 1]
    found = _stage_json(folder, previous)["fingerprint"]
    if found != folder.ledger.fingerprint:
        raise ForeignCheckpointError(
            f"{folder.stage(previous)} belongs to another run: its fingerprint is {found}, this run's is "
            f"{folder.ledger.fingerprint}. Put this run's own checkpoint back, or give another --output."
        )
    return load_stage(model, folder.pool(previous), previous)


def _stage_json(folder: RunFolder, name: str) -> dict[str, Any]:
    file = stage_file(folder.path, name)
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return {"fingerprint": content["fingerprint"], "metrics_length": int(content["metrics_length"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ForeignCheckpointError(
            f"{file} is not what this recipe writes ({type(error).__name__}: {error}). Restore it, or give "
            "another --output."
        ) from error

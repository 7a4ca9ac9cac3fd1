"""What training one stage after another works with, and how its state gets to disk and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils import broadcast_object_list, gather_object

from recipes.cologen.config.run import RunConfig
from recipes.cologen.data.opening import DataSource
from recipes.cologen.runs.checkpoint import (
    ForeignCheckpointError,
    StageState,
    capture_rng,
    load_tensors,
    restore_rng,
    save_tensors,
    write_folder,
    write_state,
)
from recipes.cologen.runs.files import POOL, TRAINING
from recipes.cologen.runs.folder import RunFolder, StageRecord, now
from recipes.cologen.runs.generation import generation_settings, write_generation
from recipes.cologen.runs.interruption import StopSignals
from recipes.cologen.training.distributed.parallel import load_whole_state, splits, whole_state
from recipes.cologen.training.input.skips import SkipTally
from recipes.cologen.training.metrics import MetricsLog
from recipes.cologen.training.progress import ProgressView
from recipes.cologen.training.step import TrainedModel


@dataclass(frozen=True)
class TrainingContext:
    """Everything that training one stage after another works with."""

    trained: TrainedModel
    data: DataSource
    held_out: DataSource | None
    folder: RunFolder
    metrics: MetricsLog
    progress: ProgressView
    stop: StopSignals
    skips: SkipTally

    def steps_before(self, stage: str) -> int:
        """Steps of all stages before this one."""
        return steps_before(self.trained.config, stage)


def steps_before(config: RunConfig, stage: str) -> int:
    """Steps of all stages before this one."""
    names = config.stage_names
    return sum(config.stages[name].steps for name in names[: names.index(stage)])


def note_progress(
    context: TrainingContext, state: StageState, status: Literal["started", "finished"], **measured: float
) -> None:
    """Bring the ledger's record of the stage up to date."""
    if not context.trained.accelerator.is_main_process:
        return
    known = context.folder.ledger.stages.get(state.stage)
    kept = {"share": known.share, "score": known.score} if known is not None else {}
    context.folder.note(
        state.stage,
        StageRecord(
            status=status,
            step=state.step,
            steps=context.trained.config.stages[state.stage].steps,
            seconds=round(state.seconds, 1),
            updated=now(),
            **{**kept, **measured},
        ),
    )


def save_latest(context: TrainingContext, state: StageState, optimizer: torch.optim.Optimizer) -> None:
    """Write checkpoints/latest; all ranks give random state, unlogged steps and their parts, rank 0 writes.

    Raises:
        OSError: There is no room, or the disk fails; raised on all ranks, and what was there is kept.
    """
    generators, optimizer_state = gather_object([capture_rng()]), whole_state(optimizer)
    windows = gather_object([state.window])
    state = state.model_copy(update={"metrics_length": context.metrics.length()})

    def write(pool: Callable[[Path], None]) -> None:
        def fill(folder: Path) -> None:
            pool(folder / POOL)
            values = {
                "names": _trained_names(context),
                "optimizer": optimizer_state,
                "generators": generators,
                "windows": windows,
                "micro_batches": micro_batches(context, state.stage),
            }
            save_tensors(folder, TRAINING, values)
            write_state(folder, state, context.folder.ledger.fingerprint)

        write_folder(context.folder.latest, fill)

    _write_together(context, write)


def _write_together(context: TrainingContext, write: Callable[[Callable[[Path], None]], None]) -> None:
    """Have rank 0 write a checkpoint; the others give their parts of a split pool, and fail if it fails.

    Args:
        context: Of the run.
        write: Writes the checkpoint; it is given what writes the pool into a folder.

    Raises:
        OSError: As `write` on rank 0.
    """
    accelerator, weave = context.trained.accelerator, context.trained.weave

    def save(folder: Path) -> None:
        weave.save_pretrained(folder)
        write_generation(folder, generation_settings(context.trained.config))

    problem: OSError | None = None
    if accelerator.is_main_process:
        try:
            write(save)
        except OSError as error:
            problem = error
    elif splits(accelerator):
        weave.save_pretrained(context.folder.path)  # only gathers: the file is rank 0's
    if accelerator.num_processes > 1:
        told = [None if problem is None else str(problem)]
        broadcast_object_list(told)
        if problem is None and told[0] is not None:
            problem = OSError(told[0])
    if problem is not None:
        raise problem


def restore_latest(
    context: TrainingContext, state: StageState, optimizer: torch.optim.Optimizer
) -> StageState:
    """Put optimiser and random generators back as checkpoints/latest has them; give this rank's own state.

    Raises:
        ForeignCheckpointError: It does not fit the pool, the number of processes, or how a batch is parted
            where that changes what is learnt.
    """
    folder, accelerator = context.folder.latest, context.trained.accelerator
    values = load_tensors(folder, TRAINING)
    names = _trained_names(context)
    if values["names"] != names:
        unlike = sorted(set(values["names"]) ^ set(names))[:3]
        raise ForeignCheckpointError(
            f"{folder} holds the optimiser of {len(values['names'])} parameters, the pool trains "
            f"{len(names)} (for example {', '.join(unlike)}). Remove {folder} to start the stage anew."
        )
    if len(values["generators"]) != accelerator.num_processes:
        raise ForeignCheckpointError(
            f"{folder} was written by {len(values['generators'])} process(es), this run has "
            f"{accelerator.num_processes}. Start as many as before, or remove it to start the stage anew."
        )
    _check_parts(context, state.stage, values.get("micro_batches"))
    load_whole_state(optimizer, values["optimizer"])
    restore_rng(values["generators"][accelerator.process_index])
    if "windows" not in values:  # an older checkpoint has rank 0's alone, in state.json
        return state
    return state.model_copy(update={"window": tuple(values["windows"][accelerator.process_index])})


def micro_batches(context: TrainingContext, stage: str) -> int:
    """Into how many parts a process takes its share of a stage's batch."""
    share: int = context.trained.config.stages[stage].batch_size // context.trained.accelerator.num_processes
    return share // (context.trained.config.machine.micro_batch or share)


def _check_parts(context: TrainingContext, stage: str, before: int | None) -> None:
    """Refuse to part batches otherwise than before, where the veteran loss is of a part's share.

    Args:
        context: Of the run.
        stage: That goes on.
        before: Parts of the checkpoint; None: it is older than this check.

    Raises:
        ForeignCheckpointError: Says which setting to put back, and which one allows it.
    """
    config, now_parts = context.trained.config, micro_batches(context, stage)
    if before is None or before == now_parts or config.machine.other_micro_batch == "allow":
        return
    if config.veteran.per == "batch" and config.stages[stage].alpha > 0:
        raise ForeignCheckpointError(
            f"stage {stage!r} began with {before} micro-batch(es) a step and process, and would go on with "
            f"{now_parts} (machine.micro_batch={config.machine.micro_batch}). With veteran.per=batch the "
            "veteran loss is of each micro-batch's share, so something slightly different would be learnt. "
            "Set machine.micro_batch as it was, or go on all the same with --set "
            "machine.other_micro_batch=allow."
        )


def finish_stage(context: TrainingContext, state: StageState) -> None:
    """Keep a stage that has come to its end in checkpoints/<stage>, and say so in the ledger.

    Raises:
        OSError: There is no room, or the disk fails; raised on all ranks.
    """
    trained = context.trained
    trained.weave.freeze()

    def write(pool: Callable[[Path], None]) -> None:
        known = context.folder.ledger.stages[state.stage]
        summary = {
            "fingerprint": context.folder.ledger.fingerprint,
            "settings": trained.config.stages[state.stage].model_dump(),
            "experts": list(trained.weave.experts),
            "share": known.share,
            "score": known.score,
            "seconds": round(state.seconds, 1),
            "skipped_steps": state.skipped_steps,
            "metrics_length": context.metrics.length(),
            "finished": now(),
        }
        context.folder.finish(state.stage, pool, summary)
        note_progress(context, state, "finished")

    _write_together(context, write)
    if trained.accelerator.is_main_process:
        context.progress.say(f"stage {state.stage} is finished: {context.folder.stage(state.stage)}")


def _trained_names(context: TrainingContext) -> list[str]:
    """Names of the trained parameters, in the order of the optimiser."""
    names = {id(value): name for name, value in context.trained.model.transformer.named_parameters()}
    return [names[id(value)] for value in context.trained.weave.trainable_parameters()]

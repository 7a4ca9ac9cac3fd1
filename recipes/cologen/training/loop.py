"""Trains one stage from where it is to its end: steps, and in between logs, validation and checkpoints.

Which stages run, and how a pool is grown for them, is run.py's business; one update is step.py's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch.utils.data import Dataset

from recipes.cologen.data.bucket_order import BucketOrder
from recipes.cologen.data.record import Example
from recipes.cologen.data.sampler import BatchSampler
from recipes.cologen.data.seeding import derive_seed
from recipes.cologen.errors import CologenError
from recipes.cologen.runs.checkpoint import StageState
from recipes.cologen.training.context import TrainingContext, note_progress, restore_latest, save_latest
from recipes.cologen.training.input.batches import Batch, Examples, kept_tasks, loaded
from recipes.cologen.training.input.long_prompts import LongPrompts
from recipes.cologen.training.input.replay import ReplayedExamples
from recipes.cologen.training.optimizers import ExpertAverage, make_average, make_optimizer
from recipes.cologen.training.step import NonFiniteError, StepLosses, learning_rate, train_step
from recipes.cologen.training.validation.schedule import validate


class DivergedError(CologenError, ArithmeticError):
    """Loss or gradient was not a finite number too often."""


def train_stage(context: TrainingContext, state: StageState, resumed: bool) -> StageState:
    """Train a stage from `state` to its end, or until somebody asks to stop; says how far it came.

    Raises:
        DivergedError: Loss or gradient was not finite too often; the last checkpoint is as it was.
        ForeignCheckpointError: The checkpoint to go on from does not fit the pool or the number of processes.
    """
    trained, settings = context.trained, context.trained.config.stages[state.stage]
    optimizer = make_optimizer(trained.weave.trainable_parameters(), trained.config.optimizer)
    if trained.parallel is not None:
        optimizer = trained.parallel.divide(optimizer, trained.config.optimizer.clip_norm)
    average = make_average(optimizer, trained.config.optimizer)
    if resumed:
        state = restore_latest(context, state, optimizer)
    stream, micro_batches = _stream(context, state)
    long_prompts = LongPrompts(trained.model, context.progress.say)
    clock = time.monotonic() - state.seconds
    note_progress(context, state, "started")
    context.progress.begin(state.stage, state.step, settings.steps)
    while state.step < settings.steps:
        step = state.step + 1
        micro = [next(stream) for _ in range(micro_batches)]
        for batch in micro:
            context.skips.add(state.stage, batch)
            long_prompts.add(batch)
        try:
            measured = train_step(trained, settings, step, optimizer, micro)
        except NonFiniteError as problem:
            state = _skip(context, state, step, problem)
            context.progress.step(None)
        else:
            context.progress.step(measured)
            window = (*state.window, tuple(measured))
            state = state.model_copy(update={"skipped_in_a_row": 0, "window": window})
        state = state.model_copy(
            update={
                "step": step,
                "position": step * settings.batch_size,
                "seconds": time.monotonic() - clock,
            }
        )
        state = _after_step(context, state, step == settings.steps, average)
        stopping = context.stop.agreed(trained.accelerator)
        if step < settings.steps and (stopping or step % trained.config.logging.checkpoint_every == 0):
            save_latest(context, state, optimizer)
        if stopping:
            break
    if average is not None and state.step == settings.steps:
        average.keep()
    trained.encoder.flush()
    return state


def _after_step(
    context: TrainingContext, state: StageState, last: bool, average: ExpertAverage | None = None
) -> StageState:
    """Log and validate where it is time; the state then counts from there."""
    config = context.trained.config
    if last or state.step % config.logging.every == 0:
        _log(context, state)
        state = state.model_copy(update={"window": ()})
    if context.held_out is not None and (last or state.step % config.validation.every == 0):
        with nullcontext() if average is None else average.in_place():
            validate(context, state, context.held_out)
    return state


def _log(context: TrainingContext, state: StageState) -> None:
    """Write the mean of the steps since the last row; nothing if all of them were skipped."""
    if not state.window:
        return
    accelerator, config = context.trained.accelerator, context.trained.config
    here = torch.tensor(
        StepLosses.mean([StepLosses(*row) for row in state.window]), device=accelerator.device
    )
    counted = accelerator.reduce(here.isfinite().float(), "sum")  # a rank may have had no share to measure
    mean = StepLosses(*(accelerator.reduce(here.nan_to_num(), "sum") / counted.clamp(min=1.0)).tolist())
    row = {
        "stage": state.stage,
        "step": state.step,
        "loss": mean.loss,
        **mean._asdict(),
        "lr": learning_rate(state.step, config.stages[state.stage], config.optimizer),
        "skipped_steps": state.skipped_steps,
        "seconds": round(state.seconds, 3),
    }
    context.metrics.train(context.steps_before(state.stage) + state.step, row)
    note_progress(context, state, "started", share=mean.share)


def _skip(context: TrainingContext, state: StageState, step: int, problem: NonFiniteError) -> StageState:
    """Count a step that was skipped, write down what it was of, and end the run at too many.

    Raises:
        DivergedError: More were skipped in a row, or in this stage, than `optimizer` allows.
    """
    limits, lr = context.trained.config.optimizer, context.trained.config.stages[state.stage].lr
    count, in_a_row = state.skipped_steps + 1, state.skipped_in_a_row + 1
    row = {
        "stage": state.stage,
        "step": step,
        "losses": [loss if math.isfinite(loss) else str(loss) for loss in problem.losses],
        "records": list(problem.records),
        "skipped_steps": count,
    }
    context.metrics.skipped(context.steps_before(state.stage) + step, row)
    context.progress.say(f"{state.stage} {step}: step skipped, {problem}")
    if in_a_row > limits.max_skipped_in_a_row or count > limits.max_skipped:
        raise DivergedError(
            f"loss or gradient of stage {state.stage!r} was not finite at step {step} (learning rate {lr}): "
            f"{problem}. Such steps are skipped, but this is number {in_a_row} in a row and {count} in the "
            f"stage; optimizer.max_skipped_in_a_row={limits.max_skipped_in_a_row} and max_skipped="
            f"{limits.max_skipped} allow no more. The run is kept as of its last checkpoint. If the same "
            "records come again and again, look at them; else the training has diverged: start anew in "
            f"another --output with a lower --set stages.{state.stage}.lr, or with --set base.dtype=float32 "
            "if the base runs in bfloat16."
        )
    return state.model_copy(update={"skipped_steps": count, "skipped_in_a_row": in_a_row})


def _stream(context: TrainingContext, state: StageState) -> tuple[Iterator[Batch], int]:
    """This rank's batches from the state's position on, and how many make a step."""
    config, accelerator = context.trained.config, context.trained.accelerator
    source = context.data.stage(state.stage)
    batch_size, seed = (
        config.stages[state.stage].batch_size,
        derive_seed(config.data.seed, "stream", state.stage),
    )
    bucketed = source.bucketed(state.stage, config.data.buckets)
    order = None
    if bucketed is not None:
        order = BucketOrder(bucketed.members, config.data.buckets.group or batch_size, seed)
        counts = [f"{bucket} {len(of)}" for bucket, of in zip(*bucketed, strict=True)]
        context.progress.say(f"{state.stage}: records by height x width: {', '.join(counts)}")
    sampler = BatchSampler(
        source.num_records,
        batch_size=batch_size,
        micro_batch=config.machine.micro_batch,
        seed=seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        order=order,
    )
    sampler.load_state_dict({"position": state.position})
    own, replay = (
        Examples(source.records, state.stage, config.dropout, bucketed),
        config.stages[state.stage].replay,
    )
    examples: Dataset[Example] = own
    if replay:
        examples = ReplayedExamples(own, context.data, replay, config.dropout)
    keyed = kept_tasks(config.data.cache)
    return loaded(examples, sampler, config.machine.workers, keyed), sampler.micro_batches

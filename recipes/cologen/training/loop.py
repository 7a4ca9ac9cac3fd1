"""Trains one stage from where it is to its end: steps, and in between logs, validation and checkpoints.

Which stages run, and how a pool is grown for them, is run.py's business; one update is step.py's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch

from recipes.cologen.data.sampler import BatchSampler, derive_seed
from recipes.cologen.errors import CologenError
from recipes.cologen.training.batches import Batch, batches
from recipes.cologen.training.bench import Bench, note_progress, restore_latest, save_latest
from recipes.cologen.training.sources import DataSource
from recipes.cologen.training.state import StageState
from recipes.cologen.training.step import StepLosses, learning_rate, make_optimizer, train_step
from recipes.cologen.training.validation import evaluate_task, held_out_examples


class DivergedError(CologenError, ArithmeticError):
    """The loss is no longer a finite number."""


def train_stage(bench: Bench, state: StageState, resumed: bool) -> StageState:
    """Train a stage from `state` to its end, or until somebody asks to stop; says how far it came.

    Raises:
        DivergedError: The loss is not finite; the last checkpoint is as it was.
        ForeignCheckpointError: The checkpoint to go on from does not fit the pool or the number of processes.
    """
    trainee, settings = bench.trainee, bench.trainee.config.stages[state.stage]
    optimizer = make_optimizer(trainee.weave.trainable_parameters(), trainee.config.optimizer)
    if resumed:
        restore_latest(bench, optimizer)
    stream, micro_batches = _stream(bench, state)
    clock = time.monotonic() - state.seconds
    note_progress(bench, state, "started")
    bench.progress.begin(state.stage, state.step, settings.steps)
    while state.step < settings.steps:
        step = state.step + 1
        micro = [next(stream) for _ in range(micro_batches)]
        for batch in micro:
            bench.skips.add(state.stage, batch)
        measured = train_step(trainee, settings, step, optimizer, micro)
        _check_finite(measured, state.stage, step, settings.lr)
        state = state.model_copy(
            update={
                "step": step,
                "position": step * settings.batch_size,
                "seconds": time.monotonic() - clock,
                "window": (*state.window, tuple(measured)),
            }
        )
        bench.progress.step(measured)
        state = _after_step(bench, state, step == settings.steps)
        stopping = bench.stop.agreed(trainee.accelerator)
        if step < settings.steps and (stopping or step % trainee.config.logging.checkpoint_every == 0):
            save_latest(bench, state, optimizer)
        if stopping:
            break
    return state


def _after_step(bench: Bench, state: StageState, last: bool) -> StageState:
    """Log and validate where it is time; the state then counts from there."""
    config = bench.trainee.config
    if last or state.step % config.logging.every == 0:
        _log(bench, state)
        state = state.model_copy(update={"window": ()})
    if bench.held_out is not None and (last or state.step % config.validation.every == 0):
        _validate(bench, state, bench.held_out)
    return state


def _log(bench: Bench, state: StageState) -> None:
    accelerator, config = bench.trainee.accelerator, bench.trainee.config
    here = torch.tensor(
        StepLosses.mean([StepLosses(*row) for row in state.window]), device=accelerator.device
    )
    mean = StepLosses(*accelerator.reduce(here, "mean").tolist())
    row = {
        "stage": state.stage,
        "step": state.step,
        "loss": mean.loss,
        **mean._asdict(),
        "lr": learning_rate(state.step, config.stages[state.stage], config.optimizer),
        "seconds": round(state.seconds, 3),
    }
    bench.metrics.train(bench.steps_before(state.stage) + state.step, row)
    note_progress(bench, state, "started", share=mean.share)


def _validate(bench: Bench, state: StageState, held_out: DataSource) -> None:
    """Score the stage's own task on held-out examples; rank 0 does it, the others wait."""
    trainee, config = bench.trainee, bench.trainee.config
    if trainee.accelerator.is_main_process:
        guided = trainee.model.reads_guidance
        result = evaluate_task(
            trainee.model,
            trainee.weave,
            held_out_examples(
                held_out.stage(state.stage).records,
                state.stage,
                config.validation.samples,
                seed=config.data.held_out_seed,
            ),
            steps=config.sampling.steps,
            seed=config.data.held_out_seed,
            batch_size=config.machine.micro_batch or config.stages[state.stage].batch_size,
            source_timestep=config.flow.source_timestep,
            guidance=config.sampling.guidance if guided else None,
        )
        row = {
            "stage": state.stage,
            "step": state.step,
            "scores": {state.stage: result.score},
            "by_kind": result.by_kind,
            "usage": result.usage.tolist(),
            "sites": [site.name for site in trainee.weave.sites],
            "experts": list(trainee.weave.experts),
        }
        bench.metrics.validation(bench.steps_before(state.stage) + state.step, row)
        bench.progress.say(
            f"{state.stage} {state.step}: score {result.score:.2f} on {len(result.values)} held out"
        )
        note_progress(bench, state, "started", score=result.score)
    trainee.accelerator.wait_for_everyone()


def _check_finite(measured: StepLosses, stage: str, step: int, lr: float) -> None:
    if not math.isfinite(measured.loss):
        raise DivergedError(
            f"the loss of stage {stage!r} became {measured.loss} at step {step} (learning rate {lr}). The "
            "run is kept as of its last checkpoint. Start anew in another --output with a lower --set "
            f"stages.{stage}.lr, or with --set base.dtype=float32 if the base runs in bfloat16."
        )


def _stream(bench: Bench, state: StageState) -> tuple[Iterator[Batch], int]:
    """This rank's batches from the state's position on, and how many make a step."""
    config, accelerator = bench.trainee.config, bench.trainee.accelerator
    source = bench.data.stage(state.stage)
    sampler = BatchSampler(
        source.num_records,
        batch_size=config.stages[state.stage].batch_size,
        micro_batch=config.machine.micro_batch,
        seed=derive_seed(config.data.seed, "stream", state.stage),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    sampler.load_state_dict({"position": state.position})
    stream = batches(source.records, state.stage, sampler, config.dropout, config.machine.workers)
    return stream, sampler.micro_batches

"""Trains the stages that were asked for in a run's folder: starts, goes on, or finds that all is done."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from rich.console import Console

from prw.storage.atomic import remove_drafts
from recipes.cologen.caching.encoder import Encoder, open_encoder
from recipes.cologen.config.run import RunConfig
from recipes.cologen.data.annotators.annotate import Annotators
from recipes.cologen.data.opening import DataSource, held_out_records, training_records
from recipes.cologen.errors import LaunchError
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.flux.distilled import base_warnings
from recipes.cologen.runs.checkpoint import StageState
from recipes.cologen.runs.data_binding import contents
from recipes.cologen.runs.files import stage_file
from recipes.cologen.runs.folder import RunFolder, base_fingerprint, open_run
from recipes.cologen.runs.interruption import StopSignals
from recipes.cologen.runs.loading import base_folder
from recipes.cologen.stages import select_stages, stage_index
from recipes.cologen.training.context import TrainingContext, finish_stage, steps_before
from recipes.cologen.training.distributed.parallel import Parallel, deepspeed_is_ours, sharding_plugin, splits
from recipes.cologen.training.growth import begin_state, curriculum, grow, load_base_to_train, open_pool
from recipes.cologen.training.input.data_card import write_card
from recipes.cologen.training.input.data_check import check_held_out, check_sources
from recipes.cologen.training.input.skips import SkipTally
from recipes.cologen.training.loop import train_stage
from recipes.cologen.training.metrics import MetricsLog
from recipes.cologen.training.preflight import refuse_what_cannot_work
from recipes.cologen.training.progress import ProgressView, progress_view
from recipes.cologen.training.step import TrainedModel
from recipes.cologen.training.trackers import check_trackers
from recipes.cologen.training.validation.schedule import validated_tasks

LONGEST_WAIT = timedelta(hours=12)
"""How long processes wait for one another: for as long as rank 0 may download a base, prepare data sets or
validate. torch's own is 10 minutes on GPUs, after which it would end a run that is well."""


class Sources(NamedTuple):
    """The opened places that pictures come from."""

    data: DataSource
    held_out: DataSource | None
    annotators: Annotators


class Outcome(NamedTuple):
    """How a command ended."""

    trained: tuple[str, ...]
    """Stages that it finished."""
    stopped: StageState | None
    """Where it was asked to stop; None when it did all it was asked for."""
    complete: bool
    """Whether every stage of the config is finished now."""


def train(
    config: RunConfig, output: Path, wanted: str, console: Console, restart: str | None = None
) -> Outcome:
    """Train stages; finished ones are skipped, one that was cut off is resumed.

    Args:
        config: Of the run.
        output: The run's folder; made if it is missing.
        wanted: `all`, a stage, or a range `FIRST..LAST`.
        console: Where progress is shown; on ranks other than 0 it is made quiet.
        restart: A stage that is forgotten first, with all after it, so that they are trained anew.

    Raises:
        UnknownStageError, StageOrderError: The stages cannot be trained as asked.
        BaseModelError: The base is missing or is no FLUX.
        FolderDataError: A folder of pictures has a fault, or a stage cannot be made from it.
        AnnotatorError: What should make control maps cannot be loaded.
        RunFolderError: The folder belongs to another run, or a checkpoint in it is foreign.
        LaunchError: Processes that were launched together do not know of each other.
        TrackerError: A tracker of `logging.trackers` is unknown or not installed.
        PreflightError: Settings of a stage cannot work.
    """
    names = select_stages(wanted, config.stage_names)
    check_trackers(config.logging.trackers)
    if restart is not None:
        stage_index(restart, config.stage_names)
    accelerator = join_processes(config)
    console.quiet = console.quiet or not accelerator.is_main_process

    def warn(text: str) -> None:
        console.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)

    with accelerator.main_process_first():
        place = base_folder(config)
        base = base_fingerprint(place)
        # Opened here if there is work to do, so that a fault in the data is found before anything is written.
        idle = restart is None and all(stage_file(output, name).is_file() for name in names)
        if not idle:
            refuse_what_cannot_work(config, names, place, accelerator.num_processes)
            for line in base_warnings(config, place):
                warn(line)
        sources = None if idle else _open_sources(config, names, accelerator.device)
        held = () if sources is None else contents(sources.data, sources.annotators)
        if accelerator.is_main_process:
            remove_drafts(output)
        forgotten = restart if accelerator.is_main_process else None
        folder = open_run(output, config, base, forgotten, held, warn=warn)
    folder.check_order(names, config.stage_names)
    todo = tuple(name for name in names if not folder.is_finished(name))
    finished = [name for name in names if name not in todo]
    if finished:
        console.print(f"finished already: {', '.join(finished)}", markup=False, highlight=False)
    trained: tuple[str, ...] = ()
    stopped = None
    if todo:
        sources = sources or _open_sources(config, todo, accelerator.device)
        trained, stopped = _train_stages(config, folder, todo, sources, accelerator, console)
    return Outcome(trained, stopped, all(folder.is_finished(name) for name in config.stage_names))


def join_processes(config: RunConfig) -> Accelerator:
    """Join the processes that were launched together; asked again, it gives the same.

    Raises:
        LaunchError: accelerate counts fewer processes than the launcher, so all would write one folder; or
            it was launched with FSDP 1, or with another DeepSpeed than ZeRO-2.
    """
    with deepspeed_is_ours(config.optimizer.name):
        accelerator = Accelerator(
            mixed_precision="bf16" if config.base.dtype == "bfloat16" else "no",
            fsdp_plugin=sharding_plugin(config.base.quantisation),
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # no second copy
                InitProcessGroupKwargs(timeout=LONGEST_WAIT),
            ],
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise LaunchError(
            f"{launched} processes were launched, but accelerate sees {accelerator.num_processes}. Without "
            "GPUs, start them with: ACCELERATE_USE_CPU=true accelerate launch --config_file "
            "recipes/cologen/accelerate/ddp.yaml --num_processes N -m recipes.cologen.train ..."
        )
    return accelerator


def _train_stages(
    config: RunConfig,
    folder: RunFolder,
    todo: tuple[str, ...],
    sources: Sources,
    accelerator: Accelerator,
    console: Console,
) -> tuple[tuple[str, ...], StageState | None]:
    model = load_base_to_train(config, accelerator.device)
    _look_at(sources, config, todo, model, console)
    if accelerator.is_main_process:
        write_card(folder.path, config, sources.data, sources.held_out, sources.annotators)
    weave, state, resumed = open_pool(config, folder, model, todo[0])
    walk = curriculum(config).stages(weave)
    done: list[str] = []
    with (
        StopSignals() as stop,
        _view(config, todo, state, console) as view,
        _metrics(config, folder, state, accelerator) as metrics,
    ):
        context = TrainingContext(
            trained=TrainedModel(
                model,
                weave,
                accelerator,
                config,
                _encoder(config, model, accelerator, console),
                annotators=sources.annotators,
            ),
            data=sources.data,
            held_out=sources.held_out,
            folder=folder,
            metrics=metrics,
            progress=view,
            stop=stop,
            skips=SkipTally(folder.path, config.data.max_broken, accelerator.process_index),
        )
        for name in todo:
            if done and splits(accelerator):  # a pool that is split cannot grow
                model = load_base_to_train(config, accelerator.device)
                encoder = _encoder(config, model, accelerator, Console(quiet=True))
                context = replace(context, trained=replace(context.trained, encoder=encoder))
                weave, state, resumed = open_pool(config, folder, model, name)
                walk = curriculum(config).stages(weave)
            elif done:
                state, resumed = begin_state(config, folder, name), False
            grow(config, model, walk, name, accelerator.process_index)
            parallel = Parallel(model, accelerator)
            trained = replace(context.trained, model=model, weave=weave, parallel=parallel)
            state = train_stage(context := replace(context, trained=trained), state, resumed)
            parallel.release()
            if state.step < config.stages[name].steps:
                return tuple(done), state
            finish_stage(context, state)
            done.append(name)
            if name != todo[-1] and stop.agreed(accelerator):
                return tuple(done), state
    return tuple(done), None


def _encoder(config: RunConfig, model: FluxBase, accelerator: Accelerator, console: Console) -> Encoder:
    """The frozen encoders; says what the caches hold already and what was damaged in them."""

    def announce(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    at_once = config.machine.encode_batch
    # What a quiet console would not show is logged.
    heard = None if console.quiet else announce
    encoder = open_encoder(model, accelerator.device, config.data.cache, at_once, heard)
    for line in encoder.facts():
        announce(line)
    return encoder


def _open_sources(config: RunConfig, names: tuple[str, ...], device: torch.device) -> Sources:
    """Open what these stages read; a stage that nothing serves is found here, not when its turn comes."""
    held_out = held_out_records(config.data) if config.validation.samples else None
    trained = dict.fromkeys(task for name in names for task in (name, *config.stages[name].replay))
    validated = _validated(config, names)
    read = (*trained, *validated) if held_out is not None else tuple(trained)
    wanted = config.data.annotators if "control" in read else {}
    sources = Sources(training_records(config.data), held_out, Annotators.load(wanted, device))
    for task in trained:
        # Picture sizes are read here, by the first process; the others find them kept.
        sources.data.stage(task).bucketed(task, config.data.buckets)
    if held_out is not None:
        for task in validated:
            held_out.stage(task)
    return sources


def _look_at(
    sources: Sources, config: RunConfig, todo: tuple[str, ...], model: FluxBase, console: Console
) -> None:
    """Look before the first step at what is trained and validated on."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if config.data.source != "world":
        say("looking whether the pictures have what the stages need")
    check_sources(sources.data, config, todo, model, say)
    if sources.held_out is not None:
        check_held_out(sources.held_out, config, _validated(config, todo), model)


def _validated(config: RunConfig, names: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks that are validated while these stages are trained, each once."""
    return tuple(dict.fromkeys(task for name in names for task in validated_tasks(config, name)))


def _view(config: RunConfig, todo: tuple[str, ...], state: StageState, console: Console) -> ProgressView:
    left = sum(config.stages[name].steps for name in todo) - state.step
    return progress_view(
        console, steps_left=left, steps_done=state.step, plain_seconds=config.logging.plain_seconds
    )


def _metrics(config: RunConfig, folder: RunFolder, state: StageState, accelerator: Accelerator) -> MetricsLog:
    return MetricsLog(
        folder.path,
        accelerator.is_main_process,
        length=state.metrics_length,
        step=steps_before(config, state.stage) + state.step,
        trackers=config.logging.trackers,
        project=config.logging.project,
    )

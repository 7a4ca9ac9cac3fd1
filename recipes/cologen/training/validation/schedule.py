"""Validation during training: which tasks are validated, and what of it is logged and shown.

Scores are measured in scores.py, losses in loss.py; sample_grid.py draws the pictures.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from PIL import Image as PilImage

from recipes.cologen.config.run import RunConfig
from recipes.cologen.data.opening import DataSource
from recipes.cologen.data.record import Example
from recipes.cologen.runs.checkpoint import StageState
from recipes.cologen.training.context import TrainingContext, note_progress
from recipes.cologen.training.distributed.parallel import splits
from recipes.cologen.training.validation.encoding import encode_examples, held_out_rule
from recipes.cologen.training.validation.loss import TIMES, HeldOutLoss, held_out_loss
from recipes.cologen.training.validation.sample_grid import sample_grid
from recipes.cologen.training.validation.scores import TaskScore, evaluate_task, held_out_examples


class Measured(NamedTuple):
    """What validation found out about one task."""

    examples: list[Example]
    score: TaskScore
    loss: HeldOutLoss | None
    """None where `validation.loss_samples` is 0."""
    skipped: int = 0
    """Records that were met and could not be used."""


def validated_tasks(config: RunConfig, stage: str) -> tuple[str, ...]:
    """The tasks that are validated in a stage: its own first, then those before it, the newest first."""
    if config.validation.tasks == "own":
        return (stage,)
    names = config.stage_names
    return tuple(reversed(names[: names.index(stage) + 1]))


def validate(context: TrainingContext, state: StageState, held_out: DataSource) -> None:
    """Measure on held-out examples; rank 0 does it, or all ranks where each holds a part of the model."""
    accelerator, config = context.trained.accelerator, context.trained.config
    if accelerator.is_main_process or splits(accelerator):
        tasks = validated_tasks(config, state.stage)
        with held_out_rule(context.trained.model, config):
            measured = {task: _measure(context, state, held_out, task) for task in tasks}
        if accelerator.is_main_process:
            _write(context, state, measured)
    accelerator.wait_for_everyone()


def _measure(context: TrainingContext, state: StageState, held_out: DataSource, task: str) -> Measured:
    trained, config = context.trained, context.trained.config
    settings, seed = config.validation, config.data.held_out_seed
    batch_size = config.machine.micro_batch or config.stages[state.stage].batch_size
    problems: list[str] = []
    records = held_out.stage(task).records
    made = held_out_examples(records, task, settings.samples, seed=seed, skipped=problems.append)
    if trained.accelerator.is_main_process:
        context.skips.add_held_out(task, problems)
    examples = trained.annotators.complete(made, trained.accelerator.device)
    score = evaluate_task(
        trained.model,
        trained.weave,
        examples,
        steps=config.sampling.steps,
        seed=seed,
        batch_size=batch_size,
        source_timestep=config.flow.source_timestep,
        guidance=config.sampling.guidance if trained.model.reads_guidance else None,
        true_cfg_scale=config.sampling.true_cfg_scale,
        negative_prompt=config.sampling.negative_prompt,
        shift=config.sampling.shift,
        encode=partial(encode_examples, trained),
    )
    few = examples[: settings.loss_samples]
    loss = held_out_loss(trained, few, seed=seed, batch_size=batch_size) if few else None
    return Measured(examples, score, loss, len(problems))


def _write(context: TrainingContext, state: StageState, measured: dict[str, Measured]) -> None:
    """Write the row and the pictures, and say how it went."""
    overall, own = context.steps_before(state.stage) + state.step, measured[state.stage]
    context.metrics.validation(overall, _row(context, state, measured))
    for task, of_task in measured.items():
        _save_grid(context, state, task, of_task, overall)
    said = "" if own.loss is None else f", loss {own.loss.loss:.4f}"
    context.progress.say(
        f"{state.stage} {state.step}: score {own.score.score:.2f} on {len(own.score.values)} held out{said}"
    )
    note_progress(context, state, "started", score=own.score.score)


def _row(context: TrainingContext, state: StageState, measured: dict[str, Measured]) -> dict[str, Any]:
    """What metrics.jsonl gets; `by_kind` and `usage` are of the stage's own task."""
    own, weave = measured[state.stage].score, context.trained.weave
    row: dict[str, Any] = {
        "stage": state.stage,
        "step": state.step,
        "scores": {task: of_task.score.score for task, of_task in measured.items()},
        "by_kind": own.by_kind,
        "usage": own.usage.tolist(),
        "sites": [site.name for site in weave.sites],
        "experts": list(weave.experts),
    }
    skipped = {task: of_task.skipped for task, of_task in measured.items() if of_task.skipped}
    if skipped:
        row["skipped"] = skipped
    losses = {task: of_task.loss for task, of_task in measured.items() if of_task.loss is not None}
    if losses:
        row |= {
            "loss": {task: found.loss for task, found in losses.items()},
            "loss_by_time": {task: list(found.by_time) for task, found in losses.items()},
            "times": list(TIMES),
            "share": {task: found.routing.share for task, found in losses.items()},
            "entropy": {task: found.routing.entropy for task, found in losses.items()},
            "task_usage": {task: found.routing.usage.tolist() for task, found in losses.items()},
        }
    return row


def _save_grid(
    context: TrainingContext, state: StageState, task: str, measured: Measured, step_overall: int
) -> None:
    """Write the grid of a task into the run's folder, and show it to the trackers."""
    count = context.trained.config.validation.pictures
    if not count:
        return
    grid = sample_grid(measured.examples[:count], measured.score.images[:count])
    folder = context.folder.path / "validation"
    folder.mkdir(exist_ok=True)
    PilImage.fromarray(grid).save(folder / f"{state.stage}-{state.step:07}-{task}.png")
    context.metrics.picture(step_overall, f"validation/{task}", grid)

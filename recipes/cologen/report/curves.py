"""Draws how training went: loss and share of every stage, and the validation scores over all stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.cologen.report.style import MUTED, TARGET_LINE, TASK_COLOURS, save_png
from recipes.cologen.runs.reader import TrainRow, ValidationRow


def draw_training(rows: Sequence[TrainRow], rho: Mapping[str, float], path: Path) -> Path:
    """Draw task loss (top) and share of the newest expert with its target rho (bottom), one column per stage.

    Args:
        rows: Logged steps of all stages, in order.
        rho: Target share by stage.
        path: The PNG to write.
    """
    stages = list(dict.fromkeys(row.stage for row in rows))
    figure = Figure(figsize=(3.2 * max(len(stages), 1), 4.6), layout="constrained")
    panels = figure.subplots(2, max(len(stages), 1), squeeze=False, sharey="row")
    for column, stage in enumerate(stages):
        steps = [row for row in rows if row.stage == stage]
        _draw_loss(panels[0, column], steps, stage)
        _draw_share(panels[1, column], steps, stage, rho.get(stage))
    panels[0, 0].set_ylabel("task loss")
    panels[1, 0].set_ylabel("newest expert's share")
    return save_png(figure, path)


def draw_validation(rows: Sequence[ValidationRow], path: Path) -> Path:
    """Draw the held-out score of each validated task over the steps of all stages, laid end to end."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    axes = figure.subplots()
    starts = _stage_starts(rows)
    for task in dict.fromkeys(task for row in rows for task in row.scores):
        points = [(starts[row.stage] + row.step, row.scores[task]) for row in rows if task in row.scores]
        if points:
            steps, scores = zip(*points, strict=True)
            axes.plot(steps, scores, marker="o", markersize=3, color=TASK_COLOURS[task], label=task)
    for place, (stage, start) in enumerate(starts.items()):
        axes.axvline(start, color=MUTED, linewidth=0.6, linestyle=":")
        height = 1.03 + 0.06 * (place % 2)  # in turn, since a short stage's name is wider than the stage
        axes.text(start, height, f" {stage}", fontsize=8, color=MUTED)
    axes.set(xlabel="training steps, all stages", ylabel="exact success", ylim=(-0.03, 1.16))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save_png(figure, path)


def _draw_loss(axes: Axes, rows: Sequence[TrainRow], stage: str) -> None:
    axes.plot([row.step for row in rows], [row.task_loss for row in rows], color=TASK_COLOURS[stage])
    axes.set_title(stage, fontsize=10)
    axes.set_yscale("log")


def _draw_share(axes: Axes, rows: Sequence[TrainRow], stage: str, rho: float | None) -> None:
    steps = [row.step for row in rows]
    axes.plot(steps, [row.share for row in rows], color=TASK_COLOURS[stage], label="share")
    axes.plot(steps, [row.gate for row in rows], color=MUTED, linewidth=0.7, label="gate")
    if rho is not None:
        axes.axhline(rho, color=TARGET_LINE, linestyle="--", linewidth=1.0, label=f"rho = {rho:g}")
    axes.set(xlabel="step", ylim=(-0.03, 1.05))
    axes.legend(fontsize=7, loc="lower right")


def _stage_starts(rows: Sequence[ValidationRow]) -> dict[str, int]:
    """Step, counted over all stages, at which each validated stage begins."""
    starts: dict[str, int] = {}
    total = 0
    for stage in dict.fromkeys(row.stage for row in rows):
        starts[stage] = total
        total += max(row.step for row in rows if row.stage == stage)
    return starts

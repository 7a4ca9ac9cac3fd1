"""Draws the report's figures: curves of training, tables of scores, heat-maps of routing.

A figure becomes a PNG without pyplot's global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from recipes.cologen.runs.reader import TrainRow, ValidationRow

RIGHT = "#1b7837"
WRONG = "#b2182b"
MUTED = "#666666"
TARGET_LINE = "#d95f02"
# One colour per task in every figure (Okabe-Ito, told apart by colour-blind readers).
TASK_COLOURS = {
    "inpainting": "#0072b2",
    "grounding": "#e69f00",
    "control": "#009e73",
    "customization": "#cc79a7",
    "editing": "#d55e00",
}


def save_png(figure: Figure, path: Path) -> Path:
    """Write `figure` to `path` and return the path.

    The fixed metadata keeps the bytes equal when the same numbers are drawn again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, facecolor="white", metadata={"Software": None})
    return path


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


# Score by task, for each row of a table.
ScoreRows = Mapping[str, Mapping[str, float]]


def draw_tables(tables: Mapping[str, ScoreRows], experts_off: Mapping[str, float], path: Path) -> Path:
    """Draw one 5 x 5 table per entry of `tables`, side by side, with the experts-off scores as the last row.

    Args:
        tables: Title -> stage after which was measured -> task -> score in [0, 1].
        experts_off: Task -> score of the base alone.
        path: The PNG to write.
    """
    figure = Figure(figsize=(6.4 * max(len(tables), 1), 4.6), layout="constrained")
    panels = figure.subplots(1, max(len(tables), 1), squeeze=False)[0]
    for axes, (title, rows) in zip(panels, tables.items(), strict=True):
        tasks = list(experts_off) or list(next(iter(rows.values()), {}))
        _draw_table(axes, title, {**rows, "experts off": experts_off}, tasks)
    return save_png(figure, path)


def _draw_table(axes: Axes, title: str, rows: ScoreRows, tasks: Sequence[str]) -> None:
    scores = [[row.get(task, float("nan")) for task in tasks] for row in rows.values()]
    axes.imshow(scores, vmin=0.0, vmax=1.0, cmap="RdYlGn", alpha=0.75, aspect="auto")
    axes.set_title(title, fontsize=11)
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right", fontsize=9)
    labels = [name if name == "experts off" else f"after {name}" for name in rows]
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    for line, (name, row) in enumerate(rows.items()):
        for column, task in enumerate(tasks):
            if task in row:
                axes.text(column, line, f"{row[task]:.2f}", ha="center", va="center", fontsize=10)
            if task == name:  # the diagonal: the task of the stage that just ended
                axes.add_patch(Rectangle((column - 0.5, line - 0.5), 1, 1, fill=False, linewidth=2))


class Usage(NamedTuple):
    """Share of each expert at each site while one task was generated; `shares` is [sites, experts]."""

    task: str
    sites: Sequence[str]
    experts: Sequence[str]
    shares: Sequence[Sequence[float]]


def draw_usage(own: Sequence[Usage], final: Sequence[Usage], path: Path) -> Path:
    """Draw site x expert, one column per task: after its own stage (top), with the final router (bottom).

    The two rows beside each other show the drift: the final router sends old tasks to other experts.
    """
    columns = max(len(own), 1)
    figure = Figure(figsize=(2.9 * columns + 1.2, 6.2), layout="constrained")
    panels = figure.subplots(2, columns, squeeze=False)
    for line, usages, when in zip(panels, (own, final), ("after its own stage", "final router"), strict=True):
        for axes, usage in zip(line, usages, strict=False):
            _draw_panel(axes, usage, when)
        for axes in line[len(usages) :]:
            axes.axis("off")
    return save_png(figure, path)


def short_site(name: str) -> str:
    """Site name as an axis label: `transformer_blocks.0.attn` becomes `double 0`."""
    kinds = {"transformer_blocks": "double", "single_transformer_blocks": "single"}
    parts = name.split(".")
    for part, number in pairwise(parts):
        if part in kinds and number.isdigit():
            return f"{kinds[part]} {number}"
    return name


def _draw_panel(axes: Axes, usage: Usage, when: str) -> None:
    axes.imshow(usage.shares, vmin=0.0, vmax=1.0, cmap="Blues", aspect="auto")
    axes.set_title(f"{usage.task}\n{when}", fontsize=9)
    axes.set_xticks(range(len(usage.experts)), usage.experts, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(usage.sites)), [short_site(site) for site in usage.sites], fontsize=7)
    if len(usage.sites) > 12:  # numbers in the cells of a full-size FLUX would be unreadable
        return
    for row, shares in enumerate(usage.shares):
        for column, share in enumerate(shares):
            colour = "white" if share > 0.6 else "black"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color=colour)

"""Draws the table of every task's score after every stage as coloured cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from recipes.cologen.report.style import save_png

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

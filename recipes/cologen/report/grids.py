"""Draws examples beside what came out: all sources, prompt, target, output, and the base without experts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from recipes.cologen.report.figures import MUTED, RIGHT, WRONG, save_png

Pixels = NDArray[np.uint8]
COLUMNS = (0.6, 1.95, 3.3, 4.4, 5.5)
"""Middle of each column, in widths of a picture; further sources come after the first and move the rest."""
STEP, WIDTH, INCHES = 1.1, 6.1, 1.41
"""From one picture to the next and of all columns, in widths of a picture, and that width."""


class GridRow(NamedTuple):
    """One example of a grid; pictures are uint8 [height, width, 3]; None where no oracle judged."""

    prompt: str
    kind: str
    source: Pixels
    target: Pixels
    output: Pixels
    right: bool | None
    base_output: Pixels
    base_right: bool | None
    further: tuple[Pixels, ...] = ()
    """Second, third ... sources."""


def draw_grid(title: str, rows: Sequence[GridRow], path: Path) -> Path:
    """Draw one row per example: source | further sources | prompt | target | output | experts off.

    Pictures are enlarged with nearest neighbour, so every model pixel stays a square; the frame and the word
    under an output say whether the oracle called it right.
    """
    extra = max(len(row.further) for row in rows)
    moved = STEP * extra
    columns = (COLUMNS[0], *(column + moved for column in COLUMNS[1:]))
    figure = Figure(figsize=(8.6 + INCHES * moved, 1.65 * len(rows) + 0.6))
    # One panel for everything: a panel for each picture would take matplotlib seconds to draw.
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.axis("off")
    axes.text((WIDTH + moved) / 2, -0.38, title, ha="center", fontsize=12, parse_math=False)
    first = "source 1" if extra else "source"
    for column, heading in zip(columns, (first, "prompt", "target", "output", "experts off"), strict=True):
        axes.text(column, -0.08, heading, ha="center", fontsize=10)
    for place in range(1, extra + 1):
        axes.text(COLUMNS[0] + STEP * place, -0.08, f"source {place + 1}", ha="center", fontsize=10)
    for line, row in enumerate(rows):
        top = 1.2 * line
        for place, source in enumerate((row.source, *row.further)):
            _show(axes, (COLUMNS[0] + STEP * place, top), source)
        _write(axes, (columns[1], top), row.prompt, row.kind)
        _show(axes, (columns[2], top), row.target)
        _show(axes, (columns[3], top), row.output, right=row.right)
        _show(axes, (columns[4], top), row.base_output, right=row.base_right)
    axes.set(xlim=(0, WIDTH + moved), ylim=(1.2 * len(rows), -0.6), aspect="equal")
    return save_png(figure, path)


def _show(axes: Axes, place: tuple[float, float], pixels: Pixels, *, right: bool | None = None) -> None:
    """Show a picture in a square of side 1, given the middle of its upper edge; its longer side fills it."""
    height, width = (length / max(pixels.shape[:2]) for length in pixels.shape[:2])
    left, top = place[0] - width / 2, place[1]
    axes.imshow(pixels, interpolation="nearest", extent=(left, left + width, top + height, top))
    colour = MUTED if right is None else RIGHT if right else WRONG
    line = 0.6 if right is None else 2.5
    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=line))
    if right is not None:
        word = "right" if right else "wrong"
        axes.text(place[0], top + height + 0.03, word, ha="center", va="top", fontsize=8, color=colour)


def _write(axes: Axes, place: tuple[float, float], prompt: str, kind: str) -> None:
    text = "\n".join(textwrap.wrap(prompt, 24)) or "(no prompt)"
    # Dollar signs would start TeX in matplotlib; a prompt is shown as it was written.
    axes.text(place[0], place[1] + 0.45, text, ha="center", va="center", fontsize=8, parse_math=False)
    axes.text(place[0], place[1] + 0.98, kind, ha="center", fontsize=7, color=MUTED, parse_math=False)

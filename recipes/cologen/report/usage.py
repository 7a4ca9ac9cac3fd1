"""Draws the routing heat-map: which share of every site's decisions went to which expert, per stage."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.cologen.report.style import save_png


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

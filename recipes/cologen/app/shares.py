"""Draws which expert saw which part of the source: the shares of every expert over the picture."""

from __future__ import annotations

import io

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image as PilImage

import prw
from recipes.cologen.data.record import Image
from recipes.cologen.report.figures import MUTED, TASK_COLOURS

PANELS_IN_A_ROW = 3
FADED = 0.75
"""How far the picture below is faded to gray, so that a share shows."""


def share_maps(routing: prw.Routing) -> NDArray[np.float32] | None:
    """Fraction of the decisions, over sites and steps, that went to each expert at each source token.

    Returns:
        Float [experts, tokens], columns sum to one; None where whole samples are routed, or sites do not see
        the same tokens.
    """
    decisions = routing.all()
    items = {decision.choices.shape[1] for decision in decisions}
    if len(items) > 1 or items == {1}:
        return None
    counts = torch.zeros(len(routing.experts), items.pop())
    for decision in decisions:
        for choice in decision.choices[0].unbind(-1):
            routed = choice >= 0
            counts[choice[routed], torch.nonzero(routed).squeeze(1)] += 1
    shares: NDArray[np.float32] = (counts / counts.sum(0, keepdim=True).clamp(min=1)).numpy()
    return shares


def shares_picture(routing: prw.Routing | None, source: Image) -> Image | None:
    """The picture of the shares, uint8 [height, width, 3]; None when experts were off.

    Args:
        routing: The decisions of one sampling run for one picture.
        source: What the model saw, uint8 [height, width, 3].
    """
    if routing is None:
        return None
    shares = share_maps(routing)
    rows = 0 if shares is None else _rows(shares.shape[1], source)
    if shares is None or not rows:
        return _pixels(prw.plot_routing(routing))
    columns = shares.shape[1] // rows
    return _pixels(_panels(routing.experts, shares.reshape(-1, rows, columns), source))


def _rows(tokens: int, source: Image) -> int:
    """Rows of the token grid that has the picture's proportions; 0 when there is none."""
    height, width = source.shape[:2]
    rows = round((tokens * height / width) ** 0.5)
    return rows if rows and tokens % rows == 0 and rows * width == tokens // rows * height else 0


def _panels(experts: tuple[str, ...], shares: NDArray[np.float32], source: Image) -> Figure:
    across = min(PANELS_IN_A_ROW, len(experts))
    down = -(-len(experts) // across)
    height, width = source.shape[:2]
    figure = Figure(figsize=(2.4 * across, (2.4 * height / width + 0.4) * down + 0.3), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flat
    faded = FADED * source.mean(-1, keepdims=True) + (1 - FADED) * 255 + np.zeros(3)
    extent = (0.0, float(width), float(height), 0.0)
    for panel, name, share in zip(axes, experts, shares, strict=False):
        colour = TASK_COLOURS.get(name, MUTED)
        panel.imshow(faded.astype(np.uint8), extent=extent, interpolation="nearest")
        ink = np.zeros((*share.shape, 4), np.float32)
        ink[..., :3] = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        ink[..., 3] = 0.85 * share
        panel.imshow(ink, extent=extent, interpolation="nearest")
        panel.set_title(f"{name} {share.mean():.0%}", fontsize=10, color=colour)
    figure.suptitle(" ", fontsize=18)  # room for the page's own label
    for panel in figure.axes:
        panel.axis("off")
    return figure


def _pixels(figure: Figure) -> Image:
    held = io.BytesIO()
    figure.savefig(held, dpi=100, facecolor="white", format="png")
    return np.asarray(PilImage.open(held).convert("RGB")).copy()

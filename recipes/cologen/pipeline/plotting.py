"""Draws over a source picture which expert its regions went to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prw.errors import UnsupportedError
from recipes.cologen.errors import RoutingQuestionError
from recipes.cologen.pipeline.routing import CoLoGenPipelineOutput, RoutingTrace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4
"""Panels in a row."""


def plot_routing(
    result: CoLoGenPipelineOutput | RoutingTrace,
    path: str | Path | None = None,
    *,
    picture: int = 0,
    source: int = 0,
    sites: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
) -> Figure:
    """Draw the source, and for each expert which of its tokens went there, as a share over blocks and steps.

    Args:
        result: What a call with `output_routing=True` gave, or its `routing`.
        path: Where the picture is also written; the ending says the format, as .png. None writes nothing.
        picture: Which of the pictures.
        source: Which of its sources, where it has several.
        sites: Blocks that count; None means all.
        steps: Numbers of the steps that count; None means all.

    Returns:
        The figure, made without pyplot, so nothing has to be closed.

    Raises:
        UnsupportedError: if matplotlib is not installed.
        RoutingQuestionError: if the call did not record its routing, or had no such picture, source, block or
            step.
    """
    trace = result if isinstance(result, RoutingTrace) else result.routing
    if trace is None:
        raise RoutingQuestionError("the call did not record its routing; call it with output_routing=True.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(
            "plot_routing draws with matplotlib, which is not installed here. Run: pip install matplotlib"
        ) from error
    shares = trace.region(picture, sites, steps, source).numpy()
    seen = trace.groups[picture][source]
    panels = len(trace.experts) + 1
    across = min(panels, COLUMNS)
    down = -(-panels // across)
    height, width = seen.shape[:2]
    figure = Figure(
        figsize=(2.7 * across + 0.9, (2.7 * height / width + 0.4) * down + 0.6), layout="constrained"
    )
    axes = np.atleast_1d(figure.subplots(down, across)).ravel()
    axes[0].imshow(seen)
    axes[0].set_title("source" if source == 0 else f"source {source + 1}", fontsize=10)
    for place, name in enumerate(trace.experts):
        axis, share = axes[place + 1], shares[place]
        axis.imshow(seen.mean(-1), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        shown = axis.imshow(
            share,
            cmap="viridis",
            vmin=0,
            vmax=1,
            alpha=0.7,
            extent=(0, width, height, 0),
            interpolation="nearest",
        )
        axis.set_title(f"{name}: {share.mean():.2f}", fontsize=10)
    for axis in axes:
        axis.set_axis_off()
    blocks = len(trace.sites) if sites is None else len(sites)
    times = len(trace.steps) if steps is None else len(steps)
    figure.suptitle(
        f"share of {blocks} blocks x {times} step{'s' if times > 1 else ''} that chose each expert",
        fontsize=10,
    )
    figure.colorbar(shown, ax=list(axes), shrink=0.8, label="share of choices")
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return figure

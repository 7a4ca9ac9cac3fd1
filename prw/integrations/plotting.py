"""Plots the routing of a record as a heat map, sites by experts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from prw.errors import UnsupportedError
from prw.routing import Routing, RoutingStatistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NUMBERS = 200
"""Up to this many cells each shows its number; more would not be legible."""
MAX_NAMES = 60
"""Up to this many sites each is named; of more, every second, third, ..."""


def plot_routing(
    routing: Routing | RoutingStatistics,
    path: str | Path | None = None,
    *,
    mask: Tensor | None = None,
    title: str | None = None,
) -> Figure:
    """Plot which expert was chosen where: one row per site, one column per expert, fractions of each row.

    Args:
        routing: What `weave.record()` yielded, or its statistics.
        path: Where the plot is also saved; the ending chooses the format, such as .png. None saves nothing.
        mask: Which tokens count, bool of shape [batch, tokens]; for a record only.
        title: Heading; None gives the share of the newest expert, entropy and margin.

    Returns:
        The figure, made without pyplot, so nothing has to be closed.

    Raises:
        UnsupportedError: if matplotlib is not installed, or a mask is given with statistics.
        RoutingError: if nothing was recorded, or the mask does not fit.
    """
    if isinstance(routing, RoutingStatistics):
        if mask is not None:
            raise UnsupportedError(
                "a mask cannot be applied to statistics that were computed already. Pass it to "
                "routing.statistics(mask), or pass the record itself to plot_routing."
            )
        statistics = routing
    else:
        statistics = routing.statistics(mask)
    figure = heat_map(statistics, heading(statistics) if title is None else title)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return figure


def heading(statistics: RoutingStatistics) -> str:
    """Give the numbers that the plot does not show."""
    newest = statistics.experts[-1]
    return (
        f"share of {newest} {statistics.share:.2f}, entropy {statistics.entropy:.2f} nats, "
        f"margin {statistics.margin:.2f}"
    )


def heat_map(statistics: RoutingStatistics, title: str) -> Figure:
    """Make the heat map."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(
            "plot_routing needs matplotlib, which is not installed. Run: pip install matplotlib"
        ) from error
    usage = statistics.usage
    sites, experts = usage.shape
    labels = [name[-36:] if len(name) <= 36 else f"…{name[-35:]}" for name in statistics.sites]
    width = 2.6 + 0.075 * max(map(len, labels)) + 0.95 * experts
    figure = Figure(
        figsize=(max(width, 6.0), 1.6 + 0.24 * min(max(sites, 5), MAX_NAMES)), layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(usage.numpy(), aspect="auto", cmap="viridis", vmin=0.0, vmax=1.0)
    step = -(-sites // MAX_NAMES)
    axes.set_yticks(range(0, sites, step), labels[::step], fontsize=8)
    axes.set_xticks(range(experts), statistics.experts, rotation=30 if experts > 4 else 0)
    axes.set_xlabel("expert, oldest first")
    axes.set_ylabel("site")
    figure.suptitle(title, fontsize=10)
    if sites * experts <= MAX_NUMBERS:
        for row, column in ((row, column) for row in range(sites) for column in range(experts)):
            value = float(usage[row, column])
            ink = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    figure.colorbar(image, ax=axes, label="fraction of choices")
    return figure

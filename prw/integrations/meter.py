"""Measures the routing between two logs: computes each forward's veteran loss and sums up what is logged."""

from __future__ import annotations

import logging

from torch import Tensor

from prw.curriculum import Stage
from prw.losses import veteran_loss
from prw.routing import Collapse, Routing, RoutingStatistics, Tally, statistics_of

logger = logging.getLogger(__name__)


class RoutingMeter:
    """The veteran loss of a stage, with a memory; nothing is read from the device before `read`.

    Attributes:
        stage: The stage.
        statistics: The routing between the last two calls of `read`; None before the first.
    """

    def __init__(self, stage: Stage, threshold: float) -> None:
        """Start empty.

        Args:
            stage: The stage.
            threshold: Share of a site's items from which one expert counts as having taken the site.
        """
        self.stage = stage
        self.statistics: RoutingStatistics | None = None
        self._threshold = threshold
        self._tally: Tally | None = None
        self._losses: Tensor | float = 0.0
        self._forwards = 0

    def loss(self, routing: Routing, mask: Tensor | None = None) -> Tensor:
        """Compute the veteran loss of one forward, and take note of its routing."""
        loss = veteran_loss(routing, self.stage.rho, self.stage.alpha, mask=mask)
        self._tally = routing.tally(mask).plus(self._tally)
        self._losses = self._losses + loss.detach()
        self._forwards += 1
        return loss

    def read(self) -> dict[str, float]:
        """Give the means since the last call and warn of collapsed sites; empty if no forward ran."""
        if self._tally is None:
            return {}
        self.statistics = statistics = statistics_of(self._tally)
        collapsed = statistics.collapsed(self._threshold, self.stage.rho)
        if collapsed:
            logger.warning("%s", alarm(collapsed, statistics))
        measured = {
            "prw/share": statistics.share,
            "prw/veteran_loss": float(self._losses) / self._forwards,
            "prw/gate": statistics.gate,
            "prw/entropy": statistics.entropy,
            "prw/margin": statistics.margin,
            "prw/collapsed_sites": float(len(collapsed)),
        }
        self._tally, self._losses, self._forwards = None, 0.0, 0
        return measured


def alarm(collapsed: tuple[Collapse, ...], statistics: RoutingStatistics) -> str:
    """Say in one sentence which sites have collapsed, onto whom, and whether that is a veteran."""
    newest = statistics.experts[-1]
    shown = ", ".join(
        f"{one.site} ({one.share:.0%} to the {'newest' if one.newest else 'veteran'} {one.expert})"
        for one in collapsed[:3]
    )
    more = f" and {len(collapsed) - 3} more" if len(collapsed) > 3 else ""
    return (
        f"routing has collapsed at {len(collapsed)} of {len(statistics.sites)} sites: {shown}{more}. The "
        f"newest expert {newest} has {statistics.share:.0%} over all sites."
    )

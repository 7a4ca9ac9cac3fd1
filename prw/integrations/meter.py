"""The veteran loss of each forward, and the routing between two logs: share, gate, entropy, collapse."""

from __future__ import annotations

import logging

from torch import Tensor

from prw.curriculum import Stage
from prw.losses import veteran_loss
from prw.routing import Collapse, Routing, RoutingStatistics, Tally, statistics_of

logger = logging.getLogger(__name__)


class RoutingMeter:
    """Computes the veteran loss of a stage and sums up its routing; reads the device only in `read`.

    Attributes:
        stage: The stage.
        statistics: The routing between the last two calls of `read`; None before the first.
    """

    def __init__(self, stage: Stage, threshold: float) -> None:
        """Start empty.

        Args:
            stage: The stage.
            threshold: Share of a site's items from which the site counts as collapsed onto one expert.
        """
        self.stage = stage
        self.statistics: RoutingStatistics | None = None
        self._threshold = threshold
        self._tally: Tally | None = None
        self._losses: Tensor | float = 0.0
        self._forwards = 0

    def loss(self, routing: Routing, mask: Tensor | None = None) -> Tensor:
        """Compute the veteran loss of one forward, and add its routing to the sums."""
        loss = veteran_loss(routing, self.stage.rho, self.stage.alpha, mask=mask)
        self._tally = routing.tally(mask).plus(self._tally)
        self._losses = self._losses + loss.detach()
        self._forwards += 1
        return loss

    def read(self) -> dict[str, float]:
        """Return the means since the last call and warn of collapsed sites; empty if no forward ran."""
        if self._tally is None:
            return {}
        self.statistics = statistics = statistics_of(self._tally)
        collapsed = statistics.collapsed(self._threshold, self.stage.rho)
        if collapsed:
            logger.warning("%s", collapse_message(collapsed, statistics))
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


def collapse_message(collapsed: tuple[Collapse, ...], statistics: RoutingStatistics) -> str:
    """Say which sites have collapsed, onto which expert, and whether that is a veteran."""
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

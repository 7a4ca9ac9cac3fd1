"""The decisions of the forwards that were recorded, and the questions one asks of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from prw.config import Share
from prw.errors import RoutingError
from prw.routing.decision import RoutingDecision
from prw.routing.shares import newest_indicator

Per = Literal["batch", "sample"]


class Routing:
    """Every decision made while recording, each once, in the order of the forwards.

    Attributes:
        experts: Names of the experts, oldest first.
        share_kind: How the share is differentiated unless asked otherwise.
        decisions: Site name to its decisions, one for every call of the site.
    """

    def __init__(self, experts: tuple[str, ...], share_kind: Share = "straight-through") -> None:
        """Start empty."""
        self.experts = experts
        self.share_kind: Share = share_kind
        self.decisions: dict[str, list[RoutingDecision]] = {}

    def add(self, site: str, decision: RoutingDecision) -> None:
        """Append a site's decision."""
        self.decisions.setdefault(site, []).append(decision)

    def all(self) -> list[RoutingDecision]:
        """List every decision, site by site.

        Raises:
            RoutingError: if nothing was recorded.
        """
        decisions = [decision for of_site in self.decisions.values() for decision in of_site]
        if not decisions:
            raise RoutingError(
                "no routing decision was recorded. Run the model inside `with weave.record() as routing:`, "
                "with at least one expert in the pool and the experts switched on."
            )
        return decisions

    def share(self) -> float:
        """Fraction of decisions, over all sites and items, that went to the newest expert (U).

        With top_k > 1, that went to it among others: every item counts once, so 1 can be reached.
        """
        with torch.no_grad():
            return float(self.newest_share("straight-through"))

    def newest_share(self, share: Share | None = None, per: Per = "batch") -> Tensor:
        """Compute the share of the newest expert so that it can be differentiated (equation 8).

        Args:
            share: `straight-through` or `soft`; None takes the pool's own setting.
            per: `batch`: one number over everything. `sample`: one number per sample, over its sites and
                items.

        Returns:
            A float32 scalar, or a float32 tensor of shape [batch].

        Raises:
            RoutingError: if nothing was recorded, or the forwards had different batch sizes and `per` is
            `sample`.
        """
        kind = self.share_kind if share is None else share
        decisions = self.all()
        device = decisions[0].weights.device
        if per == "sample":
            check_same_batch(decisions)
        sums = [newest_indicator(decision, kind).float() for decision in decisions]
        counts = [decision.routed.float() for decision in decisions]
        total = sum_over(sums, per, device)
        return total / sum_over(counts, per, device).clamp(min=1.0)

    def usage(self) -> Tensor:
        """Say which expert was chosen where: fractions of shape [sites, experts], rows sum to one.

        With top_k > 1 every choice counts, so an item counts k times.
        """
        self.all()
        rows = [self.site_usage(of_site) for of_site in self.decisions.values()]
        return torch.stack(rows)

    def site_usage(self, decisions: list[RoutingDecision]) -> Tensor:
        """Fractions of one site's items that went to each expert, float32 of shape [experts], on the CPU."""
        device = decisions[0].expert_ids.device  # replicas of nn.DataParallel have one each
        ids = torch.cat([decision.expert_ids.flatten().to(device) for decision in decisions])
        numbers = torch.arange(len(self.experts), device=ids.device)
        counts = (ids.unsqueeze(-1) == numbers).sum(0).float()
        return (counts / counts.sum().clamp(min=1.0)).cpu()

    def gate(self) -> float:
        """Mean weight of the chosen experts over all sites and routed items."""
        with torch.no_grad():
            decisions = self.all()
            total = sum(float(decision.weights.float().sum()) for decision in decisions)
            count = sum(int((decision.expert_ids >= 0).sum()) for decision in decisions)
        return total / max(count, 1)


def sum_over(parts: list[Tensor], per: Per, device: torch.device) -> Tensor:
    """Add up tensors of shape [batch, items]: to a scalar, or per sample to [batch]."""
    sums = [(part.sum() if per == "batch" else part.sum(1)).to(device) for part in parts]
    return torch.stack(sums).sum(0)


def check_same_batch(decisions: list[RoutingDecision]) -> None:
    """Refuse to mix batch sizes, since samples could not be told apart."""
    sizes = sorted({decision.expert_ids.shape[0] for decision in decisions})
    if len(sizes) > 1:
        raise RoutingError(
            f"the share per sample needs one batch size, but forwards with batch sizes {sizes} were "
            "recorded. Record each forward by itself, or use per='batch'."
        )

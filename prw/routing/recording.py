"""The decisions of the forwards that were recorded, and the questions one asks of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from prw.config import Share
from prw.errors import ConfigError, RoutingError
from prw.routing.decision import RoutingDecision, newest_indicator
from prw.routing.statistics import Collapse, RoutingStatistics, Tally, by_size, merged, statistics_of, tally

Per = Literal["batch", "sample"]


class Routing:
    """Every decision made while recording, each once, in the order of the forwards.

    Every question takes a `mask`: which tokens count, bool of shape [batch, tokens], for records of batches
    whose pads were routed too. Tokens that were not routed never count.

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

    def share(self, mask: Tensor | None = None) -> float:
        """Fraction of decisions, over all sites and items, that went to the newest expert (U).

        With top_k > 1, that went to it among others: every item counts once, so 1 can be reached.
        """
        with torch.no_grad():
            return float(self.newest_share("straight-through", mask=mask))

    def newest_share(
        self, share: Share | None = None, per: Per = "batch", *, mask: Tensor | None = None
    ) -> Tensor:
        """Compute the share of the newest expert so that it can be differentiated (equation 8).

        Args:
            share: `straight-through` or `soft`; None takes the pool's own setting.
            per: `batch`: one number over everything. `sample`: one number per sample, over its sites and
                items.
            mask: Which tokens count, bool of shape [batch, tokens]; None means all that are routed.

        Returns:
            A float32 scalar, or a float32 tensor of shape [batch].

        Raises:
            ConfigError: if `share` or `per` is none of these.
            RoutingError: if nothing was recorded, the mask does not fit, or the forwards had different batch
                sizes and `per` is `sample`.
        """
        return self.share_and_count(share, per, mask)[0]

    def share_and_count(
        self, share: Share | None = None, per: Per = "batch", mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute `newest_share`, and how many items each number is of; a share of no item is zero."""
        kind = self.share_kind if share is None else share
        if kind not in ("straight-through", "soft") or per not in ("batch", "sample"):
            raise ConfigError(
                "share is 'straight-through' or 'soft', and per is 'batch' or 'sample'; got "
                f"{kind!r} and {per!r}."
            )
        decisions = self.all()
        if per == "sample":
            check_same_batch(decisions)
        sums, counts = [], []
        for places in by_size(decisions).values():
            whole = merged([decisions[place] for place in places], mask, by_sample=per == "sample")
            sums.append(newest_indicator(whole, kind).float().sum(1))
            counts.append(whole.routed.float().sum(1))
        count = sum(counts[1:], counts[0])
        shares = sum(sums[1:], sums[0]) / count.clamp(min=1.0)
        return (shares, count) if per == "sample" else (shares.squeeze(0), count.squeeze(0))

    def usage(self, mask: Tensor | None = None) -> Tensor:
        """Compute which expert was chosen where: fractions of shape [sites, experts]; rows sum to one.

        With top_k > 1 every choice counts, so an item counts k times.
        """
        return self.statistics(mask).usage

    def gate(self, mask: Tensor | None = None) -> float:
        """Mean weight of the chosen experts over all sites and routed items."""
        return self.statistics(mask).gate

    def statistics(self, mask: Tensor | None = None) -> RoutingStatistics:
        """Measure share, usage, gate, entropy and margin of everything recorded, in one reduction.

        Raises:
            RoutingError: if nothing was recorded, or the mask does not fit.
        """
        return statistics_of(self.tally(mask))

    def collapsed(
        self, threshold: float = 0.95, rho: float | None = None, mask: Tensor | None = None
    ) -> tuple[Collapse, ...]:
        """List the sites that send nearly everything to one expert; see `RoutingStatistics.collapsed`."""
        return self.statistics(mask).collapsed(threshold, rho)

    def tally(self, mask: Tensor | None = None) -> Tally:
        """Sum up what `statistics` divides, without waiting for the device; tallies of steps can be added.

        Raises:
            RoutingError: if nothing was recorded, or the mask does not fit.
        """
        self.all()
        return tally(self.decisions, self.experts, mask)


def check_same_batch(decisions: list[RoutingDecision]) -> None:
    """Refuse to mix batch sizes, since samples could not be told apart."""
    sizes = sorted({decision.expert_ids.shape[0] for decision in decisions})
    if len(sizes) > 1:
        raise RoutingError(
            f"the share per sample needs one batch size, but forwards with batch sizes {sizes} were "
            "recorded. Record each forward by itself, or use per='batch'."
        )

"""What a record says of the routing as a whole and site by site, and the alarm when it has collapsed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from prw.errors import ConfigError
from prw.routing.tally import MEASURES, Tally


class Collapse(NamedTuple):
    """One site that sends nearly everything to one expert.

    Attributes:
        site: Name of the site.
        expert: Name of the expert.
        share: Fraction of the site's items that went to it.
        newest: Whether it is the newest expert, whose share the veteran loss holds near rho, or a veteran.
    """

    site: str
    expert: str
    share: float
    newest: bool


@dataclass(frozen=True, eq=False)
class RoutingStatistics:
    """Means over the recorded items that count; all numbers are on the CPU and carry no gradient.

    Attributes:
        sites: Names of the sites, in the order of `site_...` and of the rows of `usage`.
        experts: Names of the experts, oldest first.
        share: Fraction of all items that went to the newest expert, be it among several.
        gate: Mean weight of the chosen expert.
        entropy: Mean entropy of the router's probabilities, in nats: 0 is certain, log(experts) is even.
        margin: Mean distance between the two largest probabilities; 1 with one expert.
        choices: Experts that an item goes to: 1, or the pool's top_k.
        usage: Fraction of each site's choices that fell on each expert, of shape [sites, experts]; a row is
            zero where no item of the site counts. With top_k > 1 an item has k choices.
        site_items: How many items of each site count, of shape [sites].
        site_gate: As `gate`, of shape [sites].
        site_entropy: As `entropy`, of shape [sites].
        site_margin: As `margin`, of shape [sites].
    """

    sites: tuple[str, ...]
    experts: tuple[str, ...]
    share: float
    gate: float
    entropy: float
    margin: float
    choices: int
    usage: Tensor
    site_items: Tensor
    site_gate: Tensor
    site_entropy: Tensor
    site_margin: Tensor

    def collapsed(self, threshold: float = 0.95, rho: float | None = None) -> tuple[Collapse, ...]:
        """List the sites that send at least `threshold` of their items to one expert.

        A veteran that takes everything shuts the newest expert out; the newest taking everything shuts the
        veterans out, which is what a stage with `rho` of 1 asks for. A pool of one expert, or of top_k,
        cannot collapse.

        Args:
            threshold: Fraction from which a site counts as collapsed, in (0, 1].
            rho: Target share of the newest expert. If it is `threshold` or more, sites of the newest expert
                are not listed; None lists them.

        Raises:
            ConfigError: if the threshold or rho is out of range.
        """
        if not 0.0 < threshold <= 1.0:
            raise ConfigError(f"threshold is a fraction of a site's items, in (0, 1]; got {threshold}.")
        if rho is not None and not 0.0 <= rho <= 1.0:
            raise ConfigError(f"rho is a share and lies in [0, 1], got {rho}.")
        last = len(self.experts) - 1
        wanted = rho is not None and rho >= threshold
        if self.choices > last:  # every item goes to every expert
            return ()
        highest = (self.usage * self.choices).clamp(max=1.0).max(dim=-1)
        rows = zip(self.sites, highest.values.tolist(), highest.indices.tolist(), strict=True)
        return tuple(
            Collapse(site, self.experts[expert], share, expert == last)
            for site, share, expert in rows
            if share >= threshold and not (wanted and expert == last)
        )


def statistics_of(tally: Tally) -> RoutingStatistics:
    """Turn sums into means, reading them from the device once."""
    sums, size = tally.sums.cpu(), len(tally.experts)
    of = {name: sums[:, size + place] for place, name in enumerate(MEASURES)}
    choices = sums[:, :size].sum(-1)  # one per item, or top_k
    items = of["items"].clamp(min=1.0)
    total = float(of["items"].sum().clamp(min=1.0))
    return RoutingStatistics(
        sites=tally.sites,
        experts=tally.experts,
        share=float(of["newest"].sum()) / total,
        gate=float(of["gate"].sum()) / float(choices.sum().clamp(min=1.0)),
        entropy=float(of["entropy"].sum()) / total,
        margin=float(of["margin"].sum()) / total,
        choices=max(1, round(float(choices.sum()) / total)),
        usage=sums[:, :size] / choices.clamp(min=1.0).unsqueeze(-1),
        site_items=of["items"].long(),
        site_gate=of["gate"] / choices.clamp(min=1.0),
        site_entropy=of["entropy"] / items,
        site_margin=of["margin"] / items,
    )

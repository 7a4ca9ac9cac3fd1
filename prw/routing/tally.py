"""Sums over every recorded item, per site, in one reduction: what all routing statistics are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prw.errors import RoutingError
from prw.routing.decision import RoutingDecision
from prw.routing.merge import by_size, merged, owners

MEASURES = ("items", "newest", "gate", "entropy", "margin")
"""What is summed for each site besides the items of each expert."""


class Tally(NamedTuple):
    """Sums of one or several records over the items that count.

    Attributes:
        sites: Names of the sites.
        experts: Names of the experts, oldest first.
        sums: Float32 of shape [sites, experts + measures], on the device of the decisions: how often each
            expert was chosen, then MEASURES.
    """

    sites: tuple[str, ...]
    experts: tuple[str, ...]
    sums: Tensor

    def plus(self, other: Tally | None) -> Tally:
        """Add another record's sums; None adds nothing.

        Raises:
            RoutingError: if it is of other sites or experts.
        """
        if other is None:
            return self
        if (self.sites, self.experts) != (other.sites, other.experts):
            raise RoutingError(
                f"records of other sites or experts cannot be added: {len(self.sites)} sites with experts "
                f"{', '.join(self.experts)}, and {len(other.sites)} with {', '.join(other.experts)}. Start a "
                "new tally when an expert is added."
            )
        return self._replace(sums=self.sums + other.sums.to(self.sums.device))


@torch.no_grad()
def tally(
    decisions: Mapping[str, Sequence[RoutingDecision]], experts: tuple[str, ...], mask: Tensor | None = None
) -> Tally:
    """Sum over all items of all sites at once; nothing is read back from the device.

    Args:
        decisions: Site name to its decisions.
        experts: Names of the experts, oldest first.
        mask: Which tokens count, bool of shape [batch, tokens]; None means all that are routed.
    """
    flat = [decision for of_site in decisions.values() for decision in of_site]
    homes = [site for site, of_site in enumerate(decisions.values()) for _ in of_site]
    check_sizes(flat, experts)
    sums = torch.zeros(len(decisions), len(experts) + len(MEASURES), device=flat[0].expert_ids.device)
    for places in by_size(flat).values():
        group = [flat[place] for place in places]
        rows = measured(merged(group, mask), len(experts))
        sums.index_add_(0, owners(group, [homes[place] for place in places], sums.device), rows)
    return Tally(tuple(decisions), experts, sums)


def measured(decision: RoutingDecision, num_experts: int) -> Tensor:
    """Write each item of a decision of shape [1, items] as one row: a one for each choice, then MEASURES.

    Returns:
        Float32 of shape [items, num_experts + measures]; zeros for an item that does not count.
    """
    choices, probabilities = decision.choices[0], decision.probabilities[0].float()
    counted = decision.routed[0]
    chosen = (choices.unsqueeze(-1) == torch.arange(num_experts, device=choices.device)).sum(1)
    best = probabilities.topk(min(2, decision.num_experts), dim=-1).values
    margin = best[:, 0] - best[:, 1] if decision.num_experts > 1 else best[:, 0]
    entropy = torch.special.entr(probabilities).sum(-1)
    newest = (choices == decision.num_experts - 1).any(-1)
    weights = decision.weights[0].float().reshape(choices.shape).sum(-1)
    measures = torch.stack([counted, newest, weights, entropy, margin], dim=-1)
    rows = torch.cat([chosen.float(), measures], dim=-1)
    return torch.where(counted.unsqueeze(-1), rows, torch.zeros_like(rows))


def check_sizes(decisions: Sequence[RoutingDecision], experts: tuple[str, ...]) -> None:
    """Refuse decisions over more experts than the record has names for.

    Raises:
        RoutingError: says how many.
    """
    largest = max(decision.num_experts for decision in decisions)
    if largest > len(experts):
        raise RoutingError(
            f"a decision among {largest} experts was recorded, but the record began with {len(experts)} "
            f"({', '.join(experts)}). An expert was added inside `with weave.record()`; record again after."
        )

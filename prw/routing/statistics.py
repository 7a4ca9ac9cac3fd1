"""Statistics of recorded decisions: concatenated, summed per site on the device, then divided once.

decisions -> merged -> tally [sites, experts + measures] -> statistics, and the alarm of a collapse
"""

# Shape suffixes: I items (tokens or whole samples) of all merged decisions, K choices, E experts, M measures.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from prw.errors import ConfigError, RoutingError
from prw.routing.decision import RoutingDecision

MEASURES = ("items", "newest", "gate", "entropy", "margin")
"""What is summed for each site besides the items of each expert."""


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
        share: Fraction of all items with the newest expert among their choices.
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
    # one row per site, one column per expert, then MEASURES
    sums = torch.zeros(len(decisions), len(experts) + len(MEASURES), device=flat[0].expert_ids.device)
    for places in by_size(flat).values():
        group = [flat[place] for place in places]
        rows = measured(merged(group, mask), len(experts))  # [items, experts + measures]
        sums.index_add_(0, owners(group, [homes[place] for place in places], sums.device), rows)
    return Tally(tuple(decisions), experts, sums)


def measured(decision: RoutingDecision, num_experts: int) -> Tensor:
    """Turn each item of a decision of shape [1, items] into one row: a one for each choice, then MEASURES.

    Returns:
        Float32 of shape [items, num_experts + measures]; zeros for an item that does not count.
    """
    choices_IK, probabilities_IE = decision.choices[0], decision.probabilities[0].float()
    counted_I = decision.routed[0]
    experts_E = torch.arange(num_experts, device=choices_IK.device)
    chosen_IE = (choices_IK.unsqueeze(-1) == experts_E).sum(1)  # [I, K, E] -> [I, E]
    best = probabilities_IE.topk(min(2, decision.num_experts), dim=-1).values
    margin_I = best[:, 0] - best[:, 1] if decision.num_experts > 1 else best[:, 0]
    entropy_I = torch.special.entr(probabilities_IE).sum(-1)
    newest_I = (choices_IK == decision.num_experts - 1).any(-1)
    gate_I = decision.weights[0].float().reshape(choices_IK.shape).sum(-1)
    measures_IM = torch.stack([counted_I, newest_I, gate_I, entropy_I, margin_I], dim=-1)
    rows = torch.cat([chosen_IE.float(), measures_IM], dim=-1)  # [I, E + M]
    return torch.where(counted_I.unsqueeze(-1), rows, torch.zeros_like(rows))


def check_sizes(decisions: Sequence[RoutingDecision], experts: tuple[str, ...]) -> None:
    """Refuse decisions over more experts than the record has names for."""
    largest = max(decision.num_experts for decision in decisions)
    if largest > len(experts):
        raise RoutingError(
            f"a decision among {largest} experts was recorded, but the record began with {len(experts)} "
            f"({', '.join(experts)}). An expert was added inside `with weave.record()`; record again after."
        )


def merged(
    decisions: Sequence[RoutingDecision], mask: Tensor | None = None, by_sample: bool = False
) -> RoutingDecision:
    """Concatenate decisions over the same number of experts.

    Args:
        decisions: At least one; `by_sample` asks for one batch size. They may lie on several devices, as
            those of nn.DataParallel do; the first one's is taken.
        mask: Which tokens count, bool of shape [batch, tokens]; None means all that are routed.
        by_sample: Whether samples stay apart.

    Returns:
        One decision of shape [1, items], or [batch, items] by sample, in the order of the decisions, with the
        axes after them kept; an item that is masked out has the expert -1, as one that is not routed.
    """
    device = decisions[0].expert_ids.device

    def concatenated(parts: Sequence[Tensor]) -> Tensor:
        if by_sample:
            return torch.cat([part.to(device) for part in parts], dim=1)  # -> [batch, items of all]
        return torch.cat([part.flatten(0, 1).to(device) for part in parts]).unsqueeze(0)  # -> [1, items]

    whole = RoutingDecision(*(concatenated(parts) for parts in zip(*decisions, strict=True)))
    if mask is None:
        return whole
    mask = mask.to(device) if isinstance(mask, Tensor) else mask
    counted = concatenated([item_mask(mask, decision.choices[..., 0]) for decision in decisions])
    if whole.expert_ids.dim() == 3:
        counted = counted.unsqueeze(-1)
    return whole._replace(
        expert_ids=torch.where(counted, whole.expert_ids, torch.full_like(whole.expert_ids, -1))
    )


def owners(decisions: Sequence[RoutingDecision], homes: Sequence[int], device: torch.device) -> Tensor:
    """Number the owner of each item of `merged` decisions, int64 of shape [items].

    The numbers are filled in on the device: a list would be copied from the host, and waited for.

    Args:
        decisions: The decisions.
        homes: The number of each one's owner, for instance its site; those of one owner stand together.
        device: Where they are wanted.
    """
    counts: dict[int, int] = {}
    for decision, home in zip(decisions, homes, strict=True):
        counts[home] = counts.get(home, 0) + decision.logits.shape[:-1].numel()
    first, length = homes[0], counts[homes[0]]
    if list(counts) == list(range(first, first + len(counts))) and set(counts.values()) == {length}:
        return torch.arange(first, first + len(counts), device=device).repeat_interleave(length)
    return torch.cat([torch.full((count,), home, device=device) for home, count in counts.items()])


def item_mask(mask: Tensor, expert_ids: Tensor) -> Tensor:
    """Turn a mask of tokens into one of a decision's items.

    Args:
        mask: Bool of shape [batch, tokens].
        expert_ids: Of shape [batch, items]. Where there is one item for several tokens, as with whole
            samples, it counts if any of its tokens does.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = getattr(mask, "dtype", type(mask).__name__)
        raise ConfigError(
            f"mask takes bools, True where a token counts; got {found}. From an attention mask of ones "
            "and zeros take attention_mask.bool()."
        )
    if mask.shape == expert_ids.shape:
        return mask
    if mask.dim() == 2 and (mask.shape[0], 1) == tuple(expert_ids.shape):
        return mask.any(dim=1, keepdim=True)  # [batch, tokens] -> [batch, 1]
    raise RoutingError(
        f"the mask has shape {tuple(mask.shape)}, but a decision of shape {tuple(expert_ids.shape)} [batch, "
        "items] was recorded. It must cover the tokens that the sites see: record each forward by itself, "
        "and where sites see different tokens (cross-attention, cached generation) pass no mask and use "
        "`with weave.route_only(mask)` or prw.project instead."
    )


def by_size(decisions: Sequence[RoutingDecision]) -> dict[int, list[int]]:
    """Group decisions by the size of the pool they chose from: one group, unless `as_of` was open for some.

    Returns:
        Size to the places of its decisions.
    """
    places: dict[int, list[int]] = {}
    for place, decision in enumerate(decisions):
        places.setdefault(decision.num_experts, []).append(place)
    return places

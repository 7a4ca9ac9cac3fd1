"""The load-balancing loss of the Switch Transformer: draws every site's routing towards equal use."""

from __future__ import annotations

import torch
from torch import Tensor

from prw.losses.checks import check_gradient, check_weight
from prw.routing import Routing, RoutingDecision
from prw.routing.statistics import by_size, merged, owners


def load_balance_loss(routing: Routing, alpha: float = 1.0, *, mask: Tensor | None = None) -> Tensor:
    """Compute alpha * N * sum_i f_i P_i for each site, and the mean over sites.

    `f_i` is the fraction of the site's choices that fell on expert i, which has no gradient, and `P_i` the
    mean probability that the router gave it. Even routing gives alpha, all to one expert up to alpha * N.

    With frozen veterans the gradient reaches the newest expert's router vectors only. And it asks for 1/N
    each, where the veteran loss asks for rho: with both, weigh this one low.

    Args:
        routing: What `weave.record()` yielded.
        alpha: Weight of the loss, at least 0; the source uses 0.01.
        mask: Which tokens count, bool of shape [batch, tokens]; None means all that are routed.

    Returns:
        A float32 scalar; 0 if no item counts.

    Raises:
        ConfigError: if alpha is negative, or the mask is not of bools.
        RoutingError: if nothing was recorded, the mask does not fit, or a gradient is wanted and the
            decisions carry none.

    Source: Switch Transformer (arXiv 2101.03961), equations 4-6.
    """
    check_weight(alpha)
    decisions, homes = routing.all(), site_places(routing)
    values, weights = [], []
    for places in by_size(decisions).values():
        group = [decisions[place] for place in places]
        whole = merged(group, mask)
        sites = owners(group, [homes[place] for place in places], whole.expert_ids.device)
        value, used = site_balance(whole, sites, len(routing.decisions))
        values.append(value.sum())
        weights.append(used.sum())
    loss = sum(values[1:], values[0]) / sum(weights[1:], weights[0]).clamp(min=1.0)
    check_gradient(loss, alpha, "load_balance_loss")
    return alpha * loss


def site_balance(decision: RoutingDecision, sites: Tensor, num_sites: int) -> tuple[Tensor, Tensor]:
    """Compute N * sum_i f_i P_i of every site at once.

    Args:
        decision: All sites' items end to end, of shape [1, items].
        sites: Which site each item is of, int64 of shape [items].
        num_sites: Number of sites.

    Returns:
        The values, and one or zero for whether any item of the site counts; each float32 of shape [sites].
    """
    choices, probabilities = decision.choices[0], decision.probabilities[0].float()
    size = decision.num_experts
    counted = decision.routed[0].float().unsqueeze(-1)
    chosen = (choices.unsqueeze(-1) == torch.arange(size, device=choices.device)).float().mean(1)
    rows = torch.cat([chosen, probabilities * counted, counted], dim=-1)
    sums = torch.zeros(num_sites, 2 * size + 1, device=choices.device).index_add(0, sites, rows)
    fractions, means, count = sums.split([size, size, 1], dim=-1)
    items = count.clamp(min=1.0)
    balance = size * (fractions * means).sum(-1) / items.squeeze(-1).square()
    return balance, (count.squeeze(-1) > 0).float()


def site_places(routing: Routing) -> list[int]:
    """Say which site each of `routing.all()` is of, by its place."""
    return [site for site, of_site in enumerate(routing.decisions.values()) for _ in of_site]

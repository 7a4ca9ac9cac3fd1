"""Losses of recorded decisions: the veteran gate, load balance and router z; functions without parameters.

Each returns a float32 scalar with a gradient for the router. Over all sites and items that count:

    veteran       alpha * |U - rho|               U: share of the newest expert     CoLoGen, equations 8 and 9
    load balance  alpha * N * sum_i f_i P_i       per site, then the mean           Switch, equations 4-6
    router z      alpha * (log sum_i exp w_i)^2   per item, then the mean           ST-MoE, equation 5
"""

# Shapes: `items` counts the tokens, or whole samples, of all decisions that are merged.

from __future__ import annotations

import math

import torch
from torch import Tensor

from prw.config import Share
from prw.errors import ConfigError, RoutingError
from prw.routing import Routing, RoutingDecision
from prw.routing.recording import Per
from prw.routing.statistics import by_size, merged, owners

__all__ = ["load_balance_loss", "router_z_loss", "veteran_loss"]


def veteran_loss(
    routing: Routing,
    rho: float,
    alpha: float,
    *,
    per: Per = "batch",
    share: Share | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Compute alpha * |U - rho|, where U is the share of the newest expert.

    Args:
        routing: What `weave.record()` yielded.
        rho: Target share, in [0, 1].
        alpha: Weight of the loss, at least 0.
        per: `batch`: U over everything recorded. `sample`: |U - rho| of each sample, averaged.
        share: `straight-through` or `soft`; None takes the pool's own setting.
        mask: Which tokens count, bool of shape [batch, tokens]; None means all that are routed.

    Returns:
        A float32 scalar; 0 if no item counts.

    Raises:
        ConfigError: if rho or alpha is out of range, or the mask is not of bools.
        RoutingError: if nothing was recorded, the mask does not fit, or a gradient is wanted and the
            decisions carry none.

    In data-parallel training each process holds its own U near rho: the mean over processes of |U_r - rho|
    is not |U - rho| of the whole batch once some lie above rho and some below. Nothing is exchanged here,
    since a process that computes the loss alone, to log it, would wait for the others forever. With
    per="sample" the mean over processes of equal batch size is that of the whole batch.

    Source: CoLoGen (arXiv 2602.22150), equations 8 and 9. The paper gives U no gradient and does not say
    whether the absolute value is taken per sample.
    """
    if not 0.0 <= rho <= 1.0:
        raise ConfigError(f"rho is a share and lies in [0, 1], got {rho}.")
    check_weight(alpha)
    newest, count = routing.share_and_count(share, per, mask)  # scalars, or both [batch]
    check_gradient(newest, alpha, "veteran_loss")
    counted = (count > 0).float()  # a sample whose tokens are all masked has no share
    return alpha * ((newest - rho).abs() * counted).sum() / counted.sum().clamp(min=1.0)


def load_balance_loss(routing: Routing, alpha: float = 1.0, *, mask: Tensor | None = None) -> Tensor:
    """Compute alpha * N * sum_i f_i P_i for each site, and the mean over sites.

    `f_i` is the fraction of the site's choices that fell on expert i, which has no gradient, and `P_i` the
    mean probability that the router gave it. Even routing gives alpha, all to one expert up to alpha * N.

    With frozen veterans the gradient reaches the newest expert's router vectors only. It aims at 1/N each,
    where the veteran loss aims at rho: with both, give this one a low weight.

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
    decisions = routing.all()
    site_of = [site for site, of_site in enumerate(routing.decisions.values()) for _ in of_site]
    values, weights = [], []
    for places in by_size(decisions).values():
        group = [decisions[place] for place in places]
        whole = merged(group, mask)
        sites = owners(group, [site_of[place] for place in places], whole.expert_ids.device)  # [items]
        value, used = balance_of_sites(whole, sites, len(routing.decisions))
        values.append(value.sum())
        weights.append(used.sum())
    loss = sum(values[1:], values[0]) / sum(weights[1:], weights[0]).clamp(min=1.0)
    check_gradient(loss, alpha, "load_balance_loss")
    return alpha * loss


def balance_of_sites(decision: RoutingDecision, sites: Tensor, num_sites: int) -> tuple[Tensor, Tensor]:
    """Compute N * sum_i f_i P_i of every site at once.

    Args:
        decision: All sites' items, concatenated, of shape [1, items].
        sites: Which site each item is of, int64 of shape [items].
        num_sites: Number of sites.

    Returns:
        The values, and one or zero for whether any item of the site counts; each float32 of shape [sites].
    """
    choices, probabilities = decision.choices[0], decision.probabilities[0].float()  # [items, k], [items, N]
    size = decision.num_experts
    counted = decision.routed[0].float().unsqueeze(-1)  # [items, 1]
    # [items, k, 1] == [N] -> [items, N]: the fraction of an item's choices that fell on each expert
    chosen = (choices.unsqueeze(-1) == torch.arange(size, device=choices.device)).float().mean(1)
    rows = torch.cat([chosen, probabilities * counted, counted], dim=-1)  # [items, 2N + 1]
    sums = torch.zeros(num_sites, 2 * size + 1, device=choices.device).index_add(0, sites, rows)
    fractions, means, count = sums.split([size, size, 1], dim=-1)  # [sites, N], [sites, N], [sites, 1]
    items = count.clamp(min=1.0)
    balance = size * (fractions * means).sum(-1) / items.squeeze(-1).square()  # -> [sites]
    return balance, (count.squeeze(-1) > 0).float()


def router_z_loss(routing: Routing, alpha: float = 1.0, *, mask: Tensor | None = None) -> Tensor:
    """Compute alpha * (log sum_i exp w_i)^2, the mean over the items of all sites: keeps the logits small.

    The logits are those that the softmax was taken of, noise included.

    Args:
        routing: What `weave.record()` yielded.
        alpha: Weight of the loss, at least 0; the source uses 0.001.
        mask: Which tokens count, bool of shape [batch, tokens]; None means all that are routed.

    Returns:
        A float32 scalar; 0 if no item counts.

    Raises:
        ConfigError: if alpha is negative, or the mask is not of bools.
        RoutingError: if nothing was recorded, the mask does not fit, or a gradient is wanted and the
            decisions carry none.

    Source: ST-MoE (arXiv 2202.08906), equation 5.
    """
    check_weight(alpha)
    decisions = routing.all()
    sums, counts = [], []
    for places in by_size(decisions).values():
        whole = merged([decisions[place] for place in places], mask)
        squares = whole.logits.float().logsumexp(-1).square()  # [1, items, N] -> [1, items]
        sums.append(torch.where(whole.routed, squares, torch.zeros_like(squares)).sum())
        counts.append(whole.routed.float().sum())
    loss = sum(sums[1:], sums[0]) / sum(counts[1:], counts[0]).clamp(min=1.0)
    check_gradient(loss, alpha, "router_z_loss")
    return alpha * loss


def check_weight(alpha: float) -> None:
    """Refuse a negative weight."""
    if not 0.0 <= alpha < math.inf:
        raise ConfigError(f"alpha weighs a loss: a finite number of at least 0, got {alpha}.")


def check_gradient(value: Tensor, alpha: float, loss: str) -> None:
    """Refuse a loss that is to train and has nothing to differentiate.

    Args:
        value: What the loss is made of.
        alpha: Its weight; with 0 nothing is to train.
        loss: Name of the loss.
    """
    if alpha > 0.0 and torch.is_grad_enabled() and not value.requires_grad:
        raise RoutingError(
            f"the recorded decisions carry no gradient, so {loss} could not train the router. Likely causes: "
            "the forward ran under torch.no_grad(), gradient checkpointing is reentrant (use "
            "use_reentrant=False), or the newest expert is frozen. For the value alone, call it under "
            "torch.no_grad()."
        )

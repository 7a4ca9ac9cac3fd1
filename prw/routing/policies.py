"""Pure functions from features to a decision: noisy logits, softmax over the pool, top-k (equations 2-4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prw.config import Gate, PoolSettings
from prw.precision import product_dtype, without_autocast
from prw.routing.decision import RoutingDecision
from prw.routing.features import router_features
from prw.routing.groups import Groups
from prw.routing.scores import router_logits, several_logits


def noisy_logits(logits: Tensor, noise_logits: Tensor) -> Tensor:
    """Add Gaussian noise of deviation softplus(noise_logits), by torch's generator (equation 2).

    Args:
        logits: Of shape [batch, items, experts].
        noise_logits: Of the same shape.
    """
    return logits + torch.randn_like(logits) * F.softplus(noise_logits)


def kept_in_graph(vectors: Sequence[Tensor], unused: Sequence[Tensor]) -> list[Tensor]:
    """Tie vectors that have no part in the result to ones that have: same values, and a gradient of zero.

    Data-parallel training waits for a gradient of everything that trains, and noise vectors have none while
    no noise is drawn.
    """
    if not torch.is_grad_enabled():
        return list(vectors)
    return [
        torch.where(torch.ones_like(used, dtype=torch.bool), used, idle.to(used))
        if idle.requires_grad
        else used
        for used, idle in zip(vectors, unused, strict=True)
    ]


def top_k(logits: Tensor, gate: Gate, routed: Tensor | None = None, k: int = 1) -> RoutingDecision:
    """Give each item its likeliest experts, each weighed by its share of *all* experts (equations 3 and 4).

    The weight is not rescaled to one, so the router learns from the task too; with `gate="unit"` its value is
    one and only its gradient is that of the probability.

    Args:
        logits: Of shape [batch, items, experts].
        gate: `prob` or `unit`.
        routed: Which items are routed, bool of shape [batch, items]; None means all.
        k: How many experts; more than there are means all. The decision has an axis for them beyond one.
    """
    probabilities = logits.softmax(dim=-1)
    k = min(k, logits.shape[-1])
    weights, expert_ids = probabilities.max(dim=-1) if k == 1 else probabilities.topk(k, dim=-1)
    if gate == "unit":
        weights = torch.ones_like(weights) + (weights - weights.detach())
    if routed is not None:
        routed = routed if k == 1 else routed.unsqueeze(-1)
        expert_ids = torch.where(routed, expert_ids, torch.full_like(expert_ids, -1))
        weights = torch.where(routed, weights, torch.zeros_like(weights))
    return RoutingDecision(expert_ids, weights, probabilities, logits)


def top_1(logits: Tensor, gate: Gate, routed: Tensor | None = None) -> RoutingDecision:
    """Give each item its likeliest expert: `top_k` with k = 1."""
    return top_k(logits, gate, routed)


def decide(
    hidden: Tensor,
    gates: Sequence[Tensor],
    noises: Sequence[Tensor],
    settings: PoolSettings,
    routed: Tensor | None = None,
    noisy: bool = True,
    groups: Groups | None = None,
) -> RoutingDecision:
    """Choose an expert, or top_k of them, for every item of one site.

    Args:
        hidden: What the projections of the site read, of shape [batch, tokens, d]. The router sees it rounded
            as their products see it, so that training under autocast and inference in 16 bits decide alike.
        gates: Router vectors of the experts to choose from, each of shape [1, d].
        noises: Their noise vectors, each of shape [1, d]; empty if they have none.
        settings: Granularity, gate, input normalisation and top_k.
        routed: Which tokens are routed, bool of shape [batch, tokens]; None means all.
        noisy: Whether noise is drawn; if not, noise vectors that train get a gradient of zero.
        groups: Which rows are of one sample, where whole samples are routed; None means those of one place in
            axis 0. The decision is then of shape [samples, 1].
    """
    hidden = hidden.to(product_dtype(hidden))
    with without_autocast(hidden.device):
        if noises and not noisy:
            gates, noises = kept_in_graph(gates, noises), []
        features = router_features(hidden, settings.granularity, routed, settings.router_norm, groups)
        if noises:
            logits, deviations = several_logits(features, [gates, noises])
            logits = noisy_logits(logits, deviations)
        else:
            logits = router_logits(features, gates)
        if groups is not None:
            routed = groups.any_routed(routed, features)
        elif routed is not None and settings.granularity == "sample":
            routed = routed.any(dim=1, keepdim=True)
        return top_k(logits, settings.gate, routed, settings.top_k)

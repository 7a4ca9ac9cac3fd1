"""The routing decision, which kernels, losses and reports read, and top-k, the policy that makes it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from prw.config import Gate, Share


class RoutingDecision(NamedTuple):
    """Which expert each item (a token, or a whole sample) of one site goes to, and how much of it.

    Attributes:
        expert_ids: Chosen expert, int64 of shape [batch, items]; -1 where the item is not routed. Where an
            item goes to k > 1 experts, of shape [batch, items, k], likeliest first.
        weights: Gate, the factor on the chosen expert's output, of the same shape; 0 where not routed.
        probabilities: Softmax over all experts, of shape [batch, items, experts].
        logits: What the softmax was taken of, noise included, of shape [batch, items, experts].

    `items` is the number of tokens, or one where whole samples are routed.
    """

    expert_ids: Tensor
    weights: Tensor
    probabilities: Tensor
    logits: Tensor

    @property
    def num_experts(self) -> int:
        """Size of the pool that was chosen from."""
        return self.probabilities.shape[-1]

    @property
    def choices(self) -> Tensor:
        """Chosen experts with an axis for several, int64 of shape [batch, items, k]; a view for k = 1."""
        return self.expert_ids if self.expert_ids.dim() == 3 else self.expert_ids.unsqueeze(-1)

    @property
    def routed(self) -> Tensor:
        """Which items are routed, bool of shape [batch, items]."""
        return self.choices[..., 0] >= 0


def top_k(logits: Tensor, gate: Gate, routed: Tensor | None = None, k: int = 1) -> RoutingDecision:
    """Choose each item's likeliest experts, gated by their probability among *all* experts (equations 3, 4).

    The gate is not rescaled to one, so the router learns from the task too; with `gate="unit"` its value is
    one and only its gradient is that of the probability.

    Args:
        logits: Of shape [batch, items, experts].
        gate: `prob` or `unit`.
        routed: Which items are routed, bool of shape [batch, items]; None means all.
        k: How many experts; more than there are means all. The decision has an axis for them beyond one.
    """
    probabilities = logits.softmax(dim=-1)
    k = min(k, logits.shape[-1])
    # [batch, items, experts] -> [batch, items], or [batch, items, k]
    gates, expert_ids = probabilities.max(dim=-1) if k == 1 else probabilities.topk(k, dim=-1)
    if gate == "unit":
        gates = torch.ones_like(gates) + (gates - gates.detach())
    if routed is not None:
        routed = routed if k == 1 else routed.unsqueeze(-1)
        expert_ids = torch.where(routed, expert_ids, torch.full_like(expert_ids, -1))
        gates = torch.where(routed, gates, torch.zeros_like(gates))
    return RoutingDecision(expert_ids, gates, probabilities, logits)


def top_1(logits: Tensor, gate: Gate, routed: Tensor | None = None) -> RoutingDecision:
    """Choose each item's likeliest expert: `top_k` with k = 1."""
    return top_k(logits, gate, routed)


def newest_indicator(decision: RoutingDecision, share: Share) -> Tensor:
    """Mark the items whose choices include the newest expert, the last of the pool (equation 8).

    Args:
        decision: A site's decision.
        share: `straight-through`: one or zero, with the gradient of the probability. `soft`: the probability.

    Returns:
        Of shape [batch, items], in the probabilities' dtype; zero where the item is not routed.
    """
    probability = decision.probabilities[..., -1]  # [batch, items, experts] -> [batch, items]
    if share == "straight-through":
        hard = (decision.choices == decision.num_experts - 1).any(-1).to(probability.dtype)
        indicator = hard + (probability - probability.detach())
    else:
        indicator = probability
    return torch.where(decision.routed, indicator, torch.zeros_like(indicator))


def per_token(of_items: Tensor, rows: int) -> Tensor:
    """Repeat what belongs to items so that there is one per row.

    Args:
        of_items: Of shape [batch, items], or [batch, items, k].
        rows: How many rows there are in the batch.

    Returns:
        Of shape [rows], or [rows, k].
    """
    batch, items, *several = of_items.shape
    repeats = rows // max(batch * items, 1)
    return of_items.unsqueeze(2).expand(batch, items, repeats, *several).reshape(rows, *several)

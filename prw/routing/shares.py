"""How much of one decision went to the newest expert, with or without a gradient (equation 8)."""

from __future__ import annotations

import torch
from torch import Tensor

from prw.config import Share
from prw.routing.decision import RoutingDecision


def newest_indicator(decision: RoutingDecision, share: Share) -> Tensor:
    """Say for each item whether it went to the newest expert, the last of the pool, be it among several.

    Args:
        decision: A site's decision.
        share: `straight-through`: one or zero, with the gradient of the probability. `soft`: the probability.

    Returns:
        Of shape [batch, items], in the probabilities' dtype; zero where the item is not routed.
    """
    probability = decision.probabilities[..., -1]
    if share == "straight-through":
        hard = (decision.choices == decision.num_experts - 1).any(-1).to(probability.dtype)
        indicator = hard + (probability - probability.detach())
    else:
        indicator = probability
    return torch.where(decision.routed, indicator, torch.zeros_like(indicator))

"""The router z-loss of ST-MoE: keeps the router's logits small."""

from __future__ import annotations

import torch
from torch import Tensor

from prw.losses.checks import check_gradient, check_weight
from prw.routing import Routing
from prw.routing.statistics import by_size, merged


def router_z_loss(routing: Routing, alpha: float = 1.0, *, mask: Tensor | None = None) -> Tensor:
    """Compute alpha * (log sum_i exp w_i)^2, the mean over the items of all sites.

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
        counted = whole.routed
        squares = whole.logits.float().logsumexp(-1).square()
        sums.append(torch.where(counted, squares, torch.zeros_like(squares)).sum())
        counts.append(counted.float().sum())
    loss = sum(sums[1:], sums[0]) / sum(counts[1:], counts[0]).clamp(min=1.0)
    check_gradient(loss, alpha, "router_z_loss")
    return alpha * loss

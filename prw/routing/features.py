"""What the router looks at: one feature vector per item, in float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor

from prw.config import Granularity
from prw.errors import RoutingError
from prw.routing.groups import Groups

EPSILON = 1e-6


def as_batch(hidden: Tensor) -> Tensor:
    """View hidden states as [batch, tokens, d]; [tokens, d] is one sample, further axes count as tokens.

    Raises:
        RoutingError: if there is no token axis.
    """
    if hidden.dim() < 2:
        raise RoutingError(
            f"a routed projection needs hidden states of shape [tokens, d] or [batch, tokens, d], got "
            f"{tuple(hidden.shape)}. Add the missing axis with hidden.unsqueeze(0)."
        )
    if hidden.dim() == 2:
        return hidden.unsqueeze(0)
    return hidden.flatten(1, -2)


def router_features(
    hidden: Tensor,
    granularity: Granularity,
    routed: Tensor | None,
    norm: bool,
    groups: Groups | None = None,
) -> Tensor:
    """Make one feature vector per item.

    Args:
        hidden: What the projection reads, of shape [batch, tokens, d].
        granularity: `token`: a feature per token. `sample`: the mean of the sample's routed tokens; pooled
            before the router and its noise, since averaging per-token noise would shrink it.
        routed: Which tokens are routed, bool of shape [batch, tokens]; None means all, pads included, which
            then enter the mean.
        norm: Whether each feature vector is divided by its root mean square.
        groups: Which rows are of one sample; None means those of one place in axis 0.

    Returns:
        Features of shape [batch, items, d], float32 (float64 stays float64: bf16 logits tie and unbalance
        experts).
    """
    features = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if granularity == "sample":
        features = pooled(features, routed) if groups is None else groups.mean(features, routed)
    if norm:
        features = features * torch.rsqrt(features.square().mean(-1, keepdim=True) + EPSILON)
    return features


def pooled(features: Tensor, routed: Tensor | None) -> Tensor:
    """Average each sample's routed tokens, to [batch, 1, d]; zeros if none is routed."""
    if routed is None:
        return features.mean(1, keepdim=True)
    picked = torch.where(routed.unsqueeze(-1), features, torch.zeros_like(features))
    count = routed.sum(1).clamp(min=1).to(features.dtype)
    return (picked.sum(1) / count.unsqueeze(-1)).unsqueeze(1)

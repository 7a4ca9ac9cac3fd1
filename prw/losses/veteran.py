"""The veteran gate: holds the newest expert's share of the routing near a target."""

from __future__ import annotations

import torch
from torch import Tensor

from prw.config import Share
from prw.errors import ConfigError, RoutingError
from prw.routing import Routing
from prw.routing.record import Per


def veteran_loss(
    routing: Routing, rho: float, alpha: float, *, per: Per = "batch", share: Share | None = None
) -> Tensor:
    """Compute alpha * |U - rho|, where U is the share of the newest expert.

    Args:
        routing: What `weave.record()` yielded.
        rho: Target share, in [0, 1].
        alpha: Weight of the loss, at least 0.
        per: `batch`: U over everything recorded. `sample`: |U - rho| of each sample, averaged.
        share: `straight-through` or `soft`; None takes the pool's own setting.

    Returns:
        A float32 scalar.

    Raises:
        ConfigError: if rho or alpha is out of range.
        RoutingError: if nothing was recorded, or a gradient is wanted and the decisions carry none.

    In data-parallel training each process holds its own U near rho: the mean over processes of |U_r - rho|
    is not |U - rho| of the whole batch once some lie above rho and some below. Nothing is exchanged here,
    since a process that computes the loss alone, to log it, would wait for the others for ever. With
    per="sample" the mean over processes of equal batch size is that of the whole batch.

    Source: CoLoGen (arXiv 2602.22150), equations 8 and 9. The paper gives U no gradient and does not say
    whether the absolute value is taken per sample.
    """
    if not 0.0 <= rho <= 1.0:
        raise ConfigError(f"rho is a share and lies in [0, 1], got {rho}.")
    if alpha < 0.0:
        raise ConfigError(f"alpha weighs a loss and cannot be negative, got {alpha}.")
    newest = routing.newest_share(share, per)
    if alpha > 0.0 and torch.is_grad_enabled() and not newest.requires_grad:
        raise RoutingError(
            "the recorded decisions carry no gradient, so the veteran loss could not train the router. "
            "Likely causes: the forward ran under torch.no_grad(), gradient checkpointing is reentrant (use "
            "use_reentrant=False), or the newest expert is frozen. For the value alone, call veteran_loss "
            "under torch.no_grad()."
        )
    return alpha * (newest - rho).abs().mean()

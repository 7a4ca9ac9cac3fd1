"""The veteran gate: holds the newest expert's share of the routing near a target."""

from __future__ import annotations

from torch import Tensor

from prw.config import Share
from prw.errors import ConfigError
from prw.losses.checks import check_gradient, check_weight
from prw.routing import Routing
from prw.routing.recording import Per


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
    since a process that computes the loss alone, to log it, would wait for the others for ever. With
    per="sample" the mean over processes of equal batch size is that of the whole batch.

    Source: CoLoGen (arXiv 2602.22150), equations 8 and 9. The paper gives U no gradient and does not say
    whether the absolute value is taken per sample.
    """
    if not 0.0 <= rho <= 1.0:
        raise ConfigError(f"rho is a share and lies in [0, 1], got {rho}.")
    check_weight(alpha)
    newest, count = routing.share_and_count(share, per, mask)
    check_gradient(newest, alpha, "veteran_loss")
    counted = (count > 0).float()  # a sample whose tokens are all masked has no share to hold
    return alpha * ((newest - rho).abs() * counted).sum() / counted.sum().clamp(min=1.0)

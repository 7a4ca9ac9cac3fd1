"""What every loss of recorded decisions refuses: a weight below zero, and decisions that cannot train."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prw.errors import ConfigError, RoutingError


def check_weight(alpha: float) -> None:
    """Refuse a negative weight.

    Raises:
        ConfigError: says what came.
    """
    if not 0.0 <= alpha < math.inf:
        raise ConfigError(f"alpha weighs a loss: a finite number of at least 0, got {alpha}.")


def check_gradient(value: Tensor, alpha: float, loss: str) -> None:
    """Refuse a loss that is to train and has nothing to differentiate.

    Args:
        value: What the loss is made of.
        alpha: Its weight; with 0 nothing is to train.
        loss: Name of the loss.

    Raises:
        RoutingError: says the likely causes.
    """
    if alpha > 0.0 and torch.is_grad_enabled() and not value.requires_grad:
        raise RoutingError(
            f"the recorded decisions carry no gradient, so {loss} could not train the router. "
            "Likely causes: the forward ran under torch.no_grad(), gradient checkpointing is reentrant (use "
            "use_reentrant=False), or the newest expert is frozen. For the value alone, call it "
            "under torch.no_grad()."
        )

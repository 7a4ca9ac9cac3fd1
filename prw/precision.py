"""Which dtype products are computed in: what autocast asks for, and what experts take where it is off."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from prw.execution import may_need_gradients


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast on a device; None where it is off, or the device has none, as meta."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off where it is on."""
    if autocast_dtype(device) is None:
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def product_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype in which a matrix product reads a tensor: autocast's where it is on, else its own.

    Autocast leaves float64 as it is. On CUDA it computes norms in float32, so what follows a norm is float32
    until the next product reads it.
    """
    dtype = autocast_dtype(hidden.device)
    return hidden.dtype if dtype is None or hidden.dtype == torch.float64 else dtype


def experts_dtype(weight: Tensor, hidden: Tensor) -> torch.dtype:
    """Return the dtype of the experts' arithmetic.

    Under autocast it is autocast's. Elsewhere it is that of the experts' weights, which keeps what training
    adds to a 16-bit base in float32; without gradients it is the input's if that has fewer bits, since the
    result is added to an output of the input's dtype anyway.

    Args:
        weight: A weight of the experts.
        hidden: What they read.
    """
    dtype = autocast_dtype(hidden.device)
    if dtype is not None and weight.dtype != torch.float64:
        return dtype
    fewer_bits = hidden.dtype in (torch.bfloat16, torch.float16) and weight.dtype.itemsize > 2
    return hidden.dtype if fewer_bits and not may_need_gradients() else weight.dtype

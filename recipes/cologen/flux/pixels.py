"""From stored pixels to what the VAE reads."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit_range(pixels: Tensor, device: torch.device) -> Tensor:
    """Pixels uint8 [..., height, width] as float32 in [-1, 1]."""
    return pixels.to(device, torch.float32) / 127.5 - 1.0

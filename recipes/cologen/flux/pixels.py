"""From stored pixels to what the VAE reads."""

from __future__ import annotations

import torch
from torch import Tensor

from recipes.cologen.flux.transfer import to_device


def to_unit_range(pixels: Tensor, device: torch.device) -> Tensor:
    """Pixels uint8 [..., height, width] as float32 in [-1, 1]; they travel as bytes."""
    return to_device(pixels, device).to(torch.float32) / 127.5 - 1.0

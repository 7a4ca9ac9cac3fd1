"""Pictures and numbers from the host's memory to a device, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device; only copies off a device are waited for.

    A copy out of ordinary memory waits until the GPU is done with all that it was given, so it goes through
    pinned memory, which torch keeps until the copy is done. Not yet measured on a GPU.
    """
    if not tensor.is_cpu or device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def wants_pinned() -> bool:
    """Whether the loader should pin batches, since there is a GPU that they go to."""
    return torch.cuda.is_available()


def to_unit_range(pixels: Tensor, device: torch.device) -> Tensor:
    """Pixels uint8 [..., height, width] as float32 in [-1, 1]; they travel as bytes."""
    return to_device(pixels, device).to(torch.float32) / 127.5 - 1.0

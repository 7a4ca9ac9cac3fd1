"""Pools whose weights are split over processes (FSDP2): gathered whole, written by one process, put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from prw.errors import StorageError


def whole(weight: Tensor) -> Tensor:
    """Copy a weight onto the CPU; of a split one every process must ask, and every one gets all of it."""
    value = weight.detach()
    if value.is_meta:
        raise StorageError(
            "the pool's weights are on the meta device: accelerate has offloaded them, or they were never "
            "loaded. Take the offloading off before saving: pipe.remove_all_hooks(), or "
            "accelerate.hooks.remove_hook_from_module(model, recurse=True)."
        )
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if value.dim() != 2 or value.numel() == 0:
        raise StorageError(
            f"a weight of the pool has shape {tuple(value.shape)}, as a part that FSDP1 or DeepSpeed's "
            "ZeRO-3 has left of it. Save inside FullyShardedDataParallel.summon_full_params(model) or "
            "deepspeed.zero.GatheredParameters(...), which make it whole."
        )
    return value.cpu().contiguous()


def put(weight: Tensor, value: Tensor) -> None:
    """Overwrite a weight; of a split one every process must do it, with the same value."""
    with torch.no_grad():
        if isinstance(weight, DTensor):
            there = value.to(weight.device, weight.dtype)
            weight.copy_(distribute_tensor(there, weight.device_mesh, weight.placements))
        else:
            weight.copy_(value)


@contextmanager
def one_writer(weights: Iterable[Tensor]) -> Iterator[bool]:
    """Tell whether this process writes: always, but for split weights, which only rank 0 writes.

    All processes leave the `with` block together, so that each finds what was written.
    """
    split = any(isinstance(weight, DTensor) for weight in weights)
    try:
        yield not split or dist.get_rank() == 0
    finally:
        if split:
            dist.barrier()

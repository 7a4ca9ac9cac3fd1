"""A plain LoRA pair as an expert, also of a projection that holds keys and values at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prw.kernels import OutputSlice
from prw.layers import expert_names
from prw.layers.experts import weight_of
from prw.storage.sharded import put
from prw.tuner import PrwLinear


def place(layer: PrwLinear, adapter: str, index: int, down: Tensor, up: Tensor) -> None:
    """Overwrite one expert at one projection by A and B of a plain LoRA, but for rows without experts."""
    for letter, output_slice in layer.slices_of(adapter).items():
        names = expert_names(index, letter)
        here, there = weight_of(layer, names.down, adapter), weight_of(layer, names.up, adapter)
        part_down, part_up = cut(output_slice, down, up)
        missing = here.shape[0] - part_down.shape[0]
        put(here, F.pad(part_down, (0, 0, 0, missing)))
        put(there, F.pad(part_up, (0, missing)))


def rank_needed(layer: PrwLinear, adapter: str, down: Tensor, up: Tensor) -> int:
    """Tell which rank an expert needs at this projection to hold a plain LoRA; one at least."""
    return max(1, *(cut(one, down, up)[0].shape[0] for one in layer.slices_of(adapter).values()))


def rows_left_out(layer: PrwLinear, adapter: str, up: Tensor) -> int:
    """Count the rows that a plain LoRA changes and experts do not: of a fused projection, its queries."""
    others = torch.ones(layer.out_features, dtype=torch.bool)
    for one in layer.slices_of(adapter).values():
        others[slice(None) if one is None else one.indices()] = False
    return int(up[others].any(dim=1).sum())


def cut(output_slice: OutputSlice | None, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Keep what of a LoRA acts on an output slice: its rows of B, and the ranks that those rows use."""
    if output_slice is None:
        return down, up
    rows = up[output_slice.indices()]
    used = rows.any(dim=0)
    return down[used], rows[:, used]

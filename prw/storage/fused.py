"""Experts of a projection that holds keys and values, as one plain LoRA pair, and such a pair as experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prw.layers import Part, expert_names
from prw.layers.experts import weight_of
from prw.storage.sharded import put, whole
from prw.tuner import PrwLinear


def joined(layer: PrwLinear, adapter: str, index: int) -> tuple[Tensor, Tensor]:
    """Give one expert at one projection as A and B of a plain LoRA, copied to the CPU.

    Of a projection that holds keys and values, A has the A of both, one above the other, and B is zero in the
    rows of the queries: its rank is twice the expert's.

    Args:
        layer: The projection.
        adapter: Adapter name.
        index: Position of the expert.

    Returns:
        Of shapes [rank, d_in] and [d_out, rank].
    """
    downs, ups = [], []
    for part in layer.parts_of(adapter):
        names = expert_names(index, part.letter)
        down, up = (whole(weight_of(layer, name, adapter)) for name in (names.down, names.up))
        if part.rows is None:
            return down, up
        among_all = up.new_zeros(layer.out_features, up.shape[1])
        among_all[part.rows.indices()] = up
        downs.append(down)
        ups.append(among_all)
    return torch.cat(downs), torch.cat(ups, dim=1)


def place(layer: PrwLinear, adapter: str, index: int, down: Tensor, up: Tensor) -> None:
    """Overwrite one expert at one projection by A and B of a plain LoRA, but for rows without experts."""
    for part in layer.parts_of(adapter):
        names = expert_names(index, part.letter)
        here, there = weight_of(layer, names.down, adapter), weight_of(layer, names.up, adapter)
        part_down, part_up = cut(part, down, up)
        missing = here.shape[0] - part_down.shape[0]
        put(here, F.pad(part_down, (0, 0, 0, missing)))
        put(there, F.pad(part_up, (0, missing)))


def rank_needed(layer: PrwLinear, adapter: str, down: Tensor, up: Tensor) -> int:
    """Tell which rank an expert needs at this projection to hold a plain LoRA; one at least."""
    return max(1, *(cut(part, down, up)[0].shape[0] for part in layer.parts_of(adapter)))


def rows_left_out(layer: PrwLinear, adapter: str, up: Tensor) -> int:
    """Count the rows that a plain LoRA changes and experts do not: of a fused projection, its queries."""
    others = torch.ones(layer.out_features, dtype=torch.bool)
    for part in layer.parts_of(adapter):
        others[slice(None) if part.rows is None else part.rows.indices()] = False
    return int(up[others].any(dim=1).sum())


def cut(part: Part, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Keep what of a LoRA acts on a part: its rows of B, and the ranks that those rows use."""
    if part.rows is None:
        return down, up
    rows = up[part.rows.indices()]
    used = rows.any(dim=0)
    return down[used], rows[:, used]

"""Puts a plain LoRA pair into an expert, also of a projection that holds keys and values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prw.errors import StorageError
from prw.layers import Part, expert_names
from prw.layers.experts import weight_of
from prw.tuner import PrwLinear


def place(layer: PrwLinear, adapter: str, index: int, down: Tensor, up: Tensor) -> None:
    """Overwrite one expert at one projection by A and B of a plain LoRA that `check_fits` has let pass."""
    with torch.no_grad():
        for part in layer.parts_of(adapter):
            names = expert_names(index, part.letter)
            here = weight_of(layer, names.down, adapter)
            part_down, part_up = cut(part, down, up)
            missing = here.shape[0] - part_down.shape[0]
            here.copy_(F.pad(part_down, (0, 0, 0, missing)))
            weight_of(layer, names.up, adapter).copy_(F.pad(part_up, (0, missing)))


def check_fits(name: str, layer: PrwLinear, adapter: str, rank: int, down: Tensor, up: Tensor) -> None:
    """Refuse a LoRA that an expert at this projection has no place for.

    Raises:
        StorageError: if its rank is too high, or it changes rows that are neither keys nor values.
    """
    parts = layer.parts_of(adapter)
    others = torch.ones(layer.out_features, dtype=torch.bool)
    for part in parts:
        others[slice(None) if part.rows is None else part.rows.indices()] = False
        needed = cut(part, down, up)[0].shape[0]
        if needed > rank:
            raise StorageError(
                f"the LoRA of {name} has rank {needed}, the pool's experts have rank {rank}: it would not "
                f"fit. Inject the pool with rank={needed} or more."
            )
    if bool(up[others].any()):
        raise StorageError(
            f"the LoRA of {name} changes {int(others.sum())} rows of the projection that have no experts "
            "(its queries, as a rule), so it cannot become an expert without loss."
        )


def cut(part: Part, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Keep what of a LoRA acts on a part: its rows of B, and the ranks that those rows use."""
    if part.rows is None:
        return down, up
    rows = up[part.rows.indices()]
    used = rows.any(dim=0)
    return down[used], rows[:, used]

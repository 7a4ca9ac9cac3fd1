"""Where expert weights live: one Linear per expert and part, in containers keyed by adapter name.

`prw_A0`, `prw_A1`, ... hold A; `prw_B*` hold B; `prw_gate*` and `prw_noise*` hold a site's router vectors.
A projection that is keys and values at once has a pair for each: `prw_Ak0`, `prw_Bk0`, `prw_Av0`, `prw_Bv0`.
One Parameter per expert and not one stacked tensor: a frozen expert is then absent from the optimiser (weight
decay would move a slice with a masked gradient), and the checkpoint of an earlier stage is a subset of a
later one's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prw.layers.rows import WHOLE, Part

DOWN, UP, GATE, NOISE = "prw_A", "prw_B", "prw_gate", "prw_noise"


class ExpertNames(NamedTuple):
    """Attribute names of one expert's containers."""

    down: str
    up: str
    gate: str
    noise: str


LETTERS = ("", "k", "v")
"""What may follow `prw_A` and `prw_B`: nothing, or which rows of a fused projection the pair is of."""


def expert_names(index: int, letter: str = "") -> ExpertNames:
    """Name the containers of the expert at a position, for the part of that letter."""
    return ExpertNames(f"{DOWN}{letter}{index}", f"{UP}{letter}{index}", f"{GATE}{index}", f"{NOISE}{index}")


def pair_names(index: int) -> tuple[str, ...]:
    """Name every container that can hold an A or a B of the expert at a position."""
    return tuple(name for letter in LETTERS for name in expert_names(index, letter)[:2])


def container_names(index: int) -> tuple[str, ...]:
    """Name every container that the expert at a position can have."""
    return (*pair_names(index), *expert_names(index)[2:])


def container(layer: nn.Module, name: str) -> nn.ModuleDict:
    """Give the layer's container of that name, creating it where it is missing."""
    if name not in layer._modules:
        layer.add_module(name, nn.ModuleDict())
    found = layer.get_submodule(name)
    if not isinstance(found, nn.ModuleDict):
        raise TypeError(
            f"{name} of {type(layer).__name__} is a {type(found).__name__}, not a container of experts"
        )
    return found


def add_expert_weights(
    layer: nn.Module, index: int, adapter: str, rank: int, like: Tensor | None, part: Part = WHOLE[0]
) -> None:
    """Give a projection the A and B of a new expert: A as torch starts a Linear, B zero, so nothing changes.

    Args:
        layer: A projection with `in_features` and `out_features`.
        index: The expert's position.
        adapter: Adapter name.
        rank: LoRA rank.
        like: A tensor whose device is taken, and whose dtype if that is float64; else experts are float32.
        part: The rows that they add to.
    """
    names = expert_names(index, part.letter)
    out_features = int(layer.out_features) if part.rows is None else part.rows.size  # type: ignore[arg-type]
    down = new_linear(int(layer.in_features), rank, like)  # type: ignore[arg-type]
    up = new_linear(rank, out_features, like)
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    nn.init.zeros_(up.weight)
    container(layer, names.down)[adapter] = down
    container(layer, names.up)[adapter] = up


def add_router_vectors(
    layer: nn.Module, index: int, adapter: str, gate_std: float, like: Tensor | None
) -> None:
    """Give the projection that keeps a site's router the vectors of a new expert.

    The gate is tiny and random, so that ties do not all fall to the first expert; the noise vector is zero,
    which makes the noise's standard deviation softplus(0) = 0.693.
    """
    names = expert_names(index)
    gate = new_linear(int(layer.in_features), 1, like)  # type: ignore[arg-type]
    noise = new_linear(int(layer.in_features), 1, like)  # type: ignore[arg-type]
    nn.init.normal_(gate.weight, std=gate_std)
    nn.init.zeros_(noise.weight)
    container(layer, names.gate)[adapter] = gate
    container(layer, names.noise)[adapter] = noise


def new_linear(in_features: int, out_features: int, like: Tensor | None) -> nn.Linear:
    """Make an uninitialised Linear without bias, float32 whatever 16-bit or quantised dtype the base has."""
    dtype = torch.float64 if like is not None and like.dtype == torch.float64 else torch.float32
    device = None if like is None else like.device
    linear: nn.Linear = nn.utils.skip_init(
        nn.Linear, in_features, out_features, bias=False, device=device, dtype=dtype
    )
    return linear


def weight_of(layer: nn.Module, name: str, adapter: str) -> Tensor:
    """Read an adapter's weight from a container; looked up anew each time, as casts replace it."""
    weight: Tensor = getattr(layer, name)[adapter].weight
    return weight

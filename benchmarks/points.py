"""The weights and inputs that all cases of a point share; d features, r rank, N experts, T tokens."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.schema import Point

SCALE = 2.0  # LoRA alpha over rank, everywhere
MARGIN = 10.0
"""By how much the logit of an item's own expert stands above the others, so that noise never moves it."""
BLOBS = 16
"""How many runs of neighbours a coherent routing has."""


class Adapter(NamedTuple):
    """One LoRA pair: A [r, d] and B [d, r]."""

    down: Tensor
    up: Tensor


Bases = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Weight [d, d] and bias [d] of K and of V."""


class Weights(NamedTuple):
    """Every weight of a point; the first expert of a larger point is the same numbers."""

    bases: Bases
    adapters: tuple[tuple[Adapter, Adapter], ...]  # for each expert, oldest first, of K and of V
    routers: Tensor  # router vectors, orthonormal, [N, d]


@lru_cache(maxsize=2)
def bases_of(width: int, dtype: str, device: torch.device) -> Bases:
    """Make the two frozen projections; every case of a group gets these very tensors, no copies."""
    generator = torch.Generator().manual_seed(0)

    def base() -> tuple[Tensor, Tensor]:
        weight = torch.randn(width, width, generator=generator) * width**-0.5
        bias = torch.randn(width, generator=generator) * width**-0.5
        return weight.to(device, getattr(torch, dtype)), bias.to(device, getattr(torch, dtype))

    return base(), base()


def weights_of(point: Point, device: torch.device) -> Weights:
    """Make the weights of a point; A and B both random, as after training."""
    generator = torch.Generator(device).manual_seed(1)

    def adapter() -> Adapter:
        down = torch.randn(point.rank, point.width, generator=generator, device=device) * point.width**-0.5
        up = torch.randn(point.width, point.rank, generator=generator, device=device)
        return Adapter(down, up * 0.1 * point.rank**-0.5)

    adapters = tuple((adapter(), adapter()) for _ in range(point.experts))
    return Weights(bases_of(point.width, point.dtype, device), adapters, routers_of(point).to(device))


def routers_of(point: Point) -> Tensor:
    """Make one orthonormal router vector per expert, [N, d]."""
    generator = torch.Generator().manual_seed(2)
    random = torch.randn(point.width, max(point.experts, 1), generator=generator)
    return torch.linalg.qr(random).Q.T.contiguous()


def assignment_of(point: Point) -> Tensor:
    """Choose the expert of every token, int64 of shape [batch, tokens per sample].

    Whole samples go to the newest expert, the one before it, and so on in turn: with as many experts as
    samples or more, the newest has one of them.
    """
    shape = (point.batch, point.tokens // point.batch)
    experts, newest, routing = max(point.experts, 1), max(point.experts, 1) - 1, point.routing
    if routing == "all to one" or experts == 1:
        return torch.full(shape, newest)
    if point.granularity == "sample":
        samples = (newest - torch.arange(point.batch)) % experts  # [batch]
        return samples.unsqueeze(1).expand(shape).contiguous()
    generator = torch.Generator().manual_seed(3)
    if routing == "90/10":
        others = torch.randint(newest, shape, generator=generator)
        mostly = torch.rand(shape, generator=generator) < 0.9
        return torch.where(mostly, torch.full(shape, newest), others)
    if routing == "half empty":
        return torch.randint(experts // 2, experts, shape, generator=generator)
    if routing == "blobs":
        length = max(point.tokens // BLOBS, 1)
        runs = torch.randint(experts, (-(-point.tokens // length),), generator=generator)
        return runs.repeat_interleave(length)[: point.tokens].view(shape)
    return torch.randint(experts, shape, generator=generator)


def hidden_of(point: Point, device: torch.device) -> Tensor:
    """Make the input, [batch, tokens, d]: random, plus what makes each router choose as assigned."""
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(point.batch, point.tokens // point.batch, point.width, generator=generator)
    hidden = noise + MARGIN * routers_of(point)[assignment_of(point)]
    # Gradients reach it in every case, as inside a network whose earlier blocks train.
    return hidden.to(device, getattr(torch, point.dtype)).requires_grad_()


def gradients_like(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Make gradients of keys and values; contiguous, since expanded ones are easier and break some peers."""
    generator = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(hidden.shape, generator=generator).to(hidden) for _ in range(2))
    return keys, values

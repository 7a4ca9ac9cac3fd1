"""What is measured: a point of the grid, and the weights and inputs that every case of that point shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Granularity = Literal["token", "sample"]
Skew = Literal["uniform", "90/10", "all to one"]

SCALE = 2.0
"""LoRA alpha over rank, everywhere."""
MARGIN = 10.0
"""By how much the logit of an item's own expert stands above the others, so that noise never moves it."""


@dataclass(frozen=True)
class Point:
    """One point of the grid; everything about it follows from these numbers.

    Attributes:
        tokens: All tokens of the batch, T.
        width: Features in and out, d.
        rank: LoRA rank, r.
        experts: Size of the pool, N.
        granularity: What is routed.
        batch: Samples that the tokens belong to.
        skew: Who goes where: each token to an expert drawn evenly, nine tenths to the newest expert and the
            rest drawn evenly from the others, or everything to the newest.
        dtype: Of the base and the input.
        expert_dtype: Of the adapters; None leaves what each library makes (float32 on a 16-bit base).
        device: Where.
        seed: Of weights, input and routing.
    """

    tokens: int
    width: int
    rank: int
    experts: int = 1
    granularity: Granularity = "token"
    batch: int = 4
    skew: Skew = "uniform"
    dtype: torch.dtype = torch.float32
    expert_dtype: torch.dtype | None = None
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what has no even split or no room for its routers."""
        if self.tokens % self.batch:
            raise ValueError(f"{self.tokens} tokens do not split into {self.batch} samples of one length")
        if self.experts > self.width:
            raise ValueError(
                f"{self.experts} experts need as many orthogonal gates, but width is {self.width}"
            )


class Adapter(NamedTuple):
    """One LoRA pair: A [rank, d] and B [d, rank]."""

    down: Tensor
    up: Tensor


class Weights(NamedTuple):
    """Every weight of a point; the first rank and the first expert of a larger point are the same numbers.

    Attributes:
        bases: Weight [d, d] and bias [d] of K and of V.
        adapters: For each expert, oldest first, the pairs of K and of V.
        gates: Router vectors, orthonormal, of shape [experts, d].
    """

    bases: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    adapters: tuple[tuple[Adapter, Adapter], ...]
    gates: Tensor


@lru_cache(maxsize=2)
def bases_of(
    width: int, dtype: torch.dtype, device: str, seed: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Draw the two frozen projections; every case of a group gets these very tensors, no copies."""
    generator = torch.Generator().manual_seed(seed)

    def base() -> tuple[Tensor, Tensor]:
        weight = torch.randn(width, width, generator=generator) * width**-0.5
        bias = torch.randn(width, generator=generator) * width**-0.5
        return weight.to(device, dtype), bias.to(device, dtype)

    return base(), base()


def weights_of(point: Point) -> Weights:
    """Draw the weights of a point; A and B both random, as after training."""
    generator = torch.Generator().manual_seed(point.seed + 1)

    def adapter() -> Adapter:
        down = torch.randn(point.rank, point.width, generator=generator) * point.width**-0.5
        up = torch.randn(point.width, point.rank, generator=generator) * 0.1 * point.rank**-0.5
        return Adapter(down.to(point.device), up.to(point.device))

    bases = bases_of(point.width, point.dtype, point.device, point.seed)
    adapters = tuple((adapter(), adapter()) for _ in range(point.experts))
    return Weights(bases, adapters, gates_of(point).to(point.device))


def gates_of(point: Point) -> Tensor:
    """Draw one orthonormal router vector per expert."""
    generator = torch.Generator().manual_seed(point.seed + 2)
    drawn = torch.randn(point.width, point.experts, generator=generator)
    return torch.linalg.qr(drawn).Q.T.contiguous()


def assignment_of(point: Point) -> Tensor:
    """Draw the expert of every token, int64 of shape [batch, tokens per sample].

    Whole samples go to the newest expert, the one before it, and so on in turn: with as many experts as
    samples or more, the newest has one of them.
    """
    shape = (point.batch, point.tokens // point.batch)
    newest = point.experts - 1
    if point.skew == "all to one" or point.experts == 1:
        return torch.full(shape, newest)
    if point.granularity == "sample":
        samples = (newest - torch.arange(point.batch)) % point.experts
        return samples.unsqueeze(1).expand(shape).contiguous()
    generator = torch.Generator().manual_seed(point.seed + 3)
    if point.skew == "uniform":
        return torch.randint(point.experts, shape, generator=generator)
    others = torch.randint(newest, shape, generator=generator)
    mostly = torch.rand(shape, generator=generator) < 0.9
    return torch.where(mostly, torch.full(shape, newest), others)


def hidden_of(point: Point) -> Tensor:
    """Draw the input, [batch, tokens per sample, d]: random, plus what makes each router choose as assigned.

    Gradients reach it in every case, as inside a network whose earlier blocks train.
    """
    generator = torch.Generator().manual_seed(point.seed + 4)
    noise = torch.randn(point.batch, point.tokens // point.batch, point.width, generator=generator)
    hidden = noise + MARGIN * gates_of(point)[assignment_of(point)]
    return hidden.to(point.device, point.dtype).requires_grad_()


def alone(point: Point) -> Point:
    """Give the point with one expert: what a single LoRA is compared at."""
    return replace(point, experts=1, granularity="token", skew="uniform")

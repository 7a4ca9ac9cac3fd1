"""The least that hardware allows a routed projection: by operations, by measured ceilings, by a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.schema import Ceiling, Pass, Point

BYTES = 2  # bfloat16
TRITON_EFFICIENCY = 0.7
"""Assumed share of its limit that a routed shrink or expand reaches; dense products are taken at theirs."""


def forward_floor(rank: int, width: int, choices: int = 1) -> float:
    """Least time of a forward over that of the two plain projections, if only multiplications took time.

    Plain: 2 projections of 2 T d^2 operations. A choice shrinks and expands for each, 2 T d r operations a
    time: 8 T d r k / 4 T d^2 = 2 r k / d.
    """
    return 1 + 2 * rank * choices / width


def training_floor(rank: int, width: int, newest_share: float, choices: int = 1) -> float:
    """Least time of a forward and backward over those of two plain frozen projections.

    Plain: forward and the gradient of the input, 8 T d^2 in all. For each choice, on top: shrink and expand
    (8 T d r), u = G B (4 T d r), and the input's gradient through A (4 T d r). Weight gradients of A and B
    are due only for the share p of choices that fell on the newest expert: 8 T d r p.
    Sum: (16 k + 8 k p) T d r / 8 T d^2 = (2 + p) r k / d.
    """
    return 1 + (2 + newest_share) * rank * choices / width


def least_seconds(point: Point, passes: Pass, ceiling: Ceiling, used: int, newest: float) -> float:
    """Give the least seconds under measured ceilings, if everything were one kernel.

    `used` experts were chosen: the others need not be read. `newest` is the share of the newest one.
    """
    t, d, r = point.tokens, point.width, point.rank
    plain = 4 * t * d * d  # operations of one product with both weights
    flops, weights, experts = plain * forward_floor(r, d), 2 * d * d, 4 * d * r * used
    moved = t * d + weights + experts + 2 * t * d
    if passes == "training":
        flops = 2 * plain * training_floor(r, d, newest)
        # G, the weights again, the input for dA where experts train, its gradient; A's and B's gradients.
        moved += 2 * t * d + weights + experts + t * d + (t * d + 4 * d * r if r else 0)
    limits = Limits(ceiling.flops_per_s, ceiling.bytes_per_s)
    return Kernel("fused", flops, BYTES * moved).seconds(limits)


@dataclass(frozen=True)
class Limits:
    """What a device can do: readings of an H100 (dense bfloat16 products; a copy), or measured ceilings."""

    flops: float = 798e12
    bytes_per_s: float = 3.0e12


class Kernel(NamedTuple):
    """One launch: its operations, and the bytes that it reads and writes with a cold cache."""

    name: str
    flops: float
    moved: float

    def seconds(self, limits: Limits) -> float:
        """Least time: the larger of its two limits."""
        return max(self.flops / limits.flops, self.moved / limits.bytes_per_s)


def base(tokens: int, width: int) -> Kernel:
    """K and V by two plain projections: read the input and two weights, write two outputs."""
    moved = BYTES * (tokens * width + 2 * width**2 + 2 * tokens * width)
    return Kernel("base K and V", 4 * tokens * width**2, moved)


def shrink(tokens: int, width: int, computed: int, held: int) -> Kernel:
    """Input times A of K and V; per projection r columns are computed, N r if dense; N r are held."""
    moved = BYTES * (tokens * width + 2 * held * width + 2 * tokens * computed)
    return Kernel("shrink", 4 * tokens * width * computed, moved)


def expand(tokens: int, width: int, computed: int, held: int, writes: bool = True) -> Kernel:
    """Rank space times B of K and V, written before the base adds to it, or read, added and written after."""
    outputs = 2 * tokens * width * (1 if writes else 2)
    moved = BYTES * (2 * tokens * computed + 2 * held * width + outputs)
    return Kernel("expand" if writes else "expand, read-modify-write", 4 * tokens * width * computed, moved)


def dense_ratio(tokens: int, width: int, rank: int, experts: int, limits: Limits) -> float:
    """Modelled forward over the plain projections: every expert in rank space, and its mask there."""
    columns = rank * experts
    mask = Kernel("mask", 2 * tokens * columns, BYTES * 4 * tokens * columns)
    kernels = shrink(tokens, width, columns, columns), mask, expand(tokens, width, columns, columns)
    return 1 + sum(kernel.seconds(limits) for kernel in kernels) / base(tokens, width).seconds(limits)


def routed_ratio(tokens: int, width: int, rank: int, experts: int, limits: Limits) -> float:
    """Modelled forward over the plain projections: the chosen expert only, at the assumed efficiency."""
    kernels = shrink(tokens, width, rank, rank * experts), expand(tokens, width, rank, rank * experts)
    added = sum(kernel.seconds(limits) for kernel in kernels) / TRITON_EFFICIENCY
    return 1 + added / base(tokens, width).seconds(limits)

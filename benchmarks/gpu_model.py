"""A model of the routed projection on a GPU, not a measurement: each kernel under two ceilings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

BYTES = 2  # bfloat16
TRITON_EFFICIENCY = 0.7
"""Assumed share of its limit that a routed shrink or expand reaches; dense products are taken at theirs."""


@dataclass(frozen=True)
class Ceilings:
    """What a device can do: readings of an H100 (dense bfloat16 products; a copy)."""

    flops: float = 798e12
    bytes_per_s: float = 3.0e12

    @property
    def balance(self) -> float:
        """Operations per byte from which arithmetic is the limit."""
        return self.flops / self.bytes_per_s


class Kernel(NamedTuple):
    """One launch: its operations, and the bytes that it reads and writes with a cold cache."""

    name: str
    flops: float
    moved: float

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.moved

    def seconds(self, ceilings: Ceilings) -> float:
        """Least time: the larger of its two limits."""
        return max(self.flops / ceilings.flops, self.moved / ceilings.bytes_per_s)


def base(tokens: int, width: int) -> Kernel:
    """K and V by two plain projections: read the input and two weights, write two outputs."""
    moved = BYTES * (tokens * width + 2 * width**2 + 2 * tokens * width)
    return Kernel("base K and V", 4 * tokens * width**2, moved)


def shrink(tokens: int, width: int, computed: int, held: int) -> Kernel:
    """Input times A of K and V.

    Args:
        tokens: T.
        width: d.
        computed: Columns computed per token and projection: r if routed, N r if dense.
        held: Columns of all A that are read, per projection: N r.
    """
    moved = BYTES * (tokens * width + 2 * held * width + 2 * tokens * computed)
    return Kernel("shrink", 4 * tokens * width * computed, moved)


def mask(tokens: int, computed: int) -> Kernel:
    """Mask and weigh in rank space, dense only: read and write [T, 2 N r]."""
    return Kernel("mask", 2 * tokens * computed, BYTES * 4 * tokens * computed)


def expand(tokens: int, width: int, computed: int, held: int, writes: bool = True) -> Kernel:
    """Rank space times B of K and V, written before the base adds to it, or read, added and written after."""
    outputs = 2 * tokens * width * (1 if writes else 2)
    moved = BYTES * (2 * tokens * computed + 2 * held * width + outputs)
    return Kernel("expand" if writes else "expand, read-modify-write", 4 * tokens * width * computed, moved)


def dense_ratio(tokens: int, width: int, rank: int, experts: int, ceilings: Ceilings) -> float:
    """Modelled forward over the plain projections: every expert in rank space, LoRA first."""
    columns = rank * experts
    kernels = (
        shrink(tokens, width, columns, columns),
        mask(tokens, columns),
        expand(tokens, width, columns, columns),
    )
    plain = base(tokens, width).seconds(ceilings)
    return 1 + sum(kernel.seconds(ceilings) for kernel in kernels) / plain


def routed_ratio(tokens: int, width: int, rank: int, experts: int, ceilings: Ceilings) -> float:
    """Modelled forward over the plain projections: the chosen expert only, at the assumed efficiency."""
    kernels = shrink(tokens, width, rank, rank * experts), expand(tokens, width, rank, rank * experts)
    added = sum(kernel.seconds(ceilings) for kernel in kernels) / TRITON_EFFICIENCY
    return 1 + added / base(tokens, width).seconds(ceilings)


class GpuTarget(NamedTuple):
    """A target for one H100: bfloat16, cold cache, replayed graphs, T = 4096, even routing."""

    against: str
    must: str
    good: str
    floor: str


GPU_TARGETS = (
    GpuTarget("two nn.Linear, forward, r = 16, N ≤ 8", "≤ 1.20", "1.14", "1.013"),
    GpuTarget("two nn.Linear, forward, r = 64, N ≤ 4", "≤ 1.25", "1.18", "1.043"),
    GpuTarget("two nn.Linear, forward, r = 128, N = 1", "≤ 1.22", "1.15", "1.084"),
    GpuTarget("two nn.Linear, forward, r = 128, N = 2", "≤ 1.27", "1.20", "1.084"),
    GpuTarget("two nn.Linear, forward, r = 128, N = 4", "≤ 1.30", "1.23", "1.085"),
    GpuTarget("two nn.Linear, forward, r = 128, N = 8", "≤ 1.35", "1.26", "1.086"),
    GpuTarget("two nn.Linear, forward, r = 16, N = 64", "≤ 1.35", "1.25", "1.031"),
    GpuTarget(
        "two nn.Linear, forward and backward, r = 128, N = 1 to 8", "≤ 1.40", "1.25 to 1.35", "1.09 to 1.13"
    ),
    GpuTarget("two nn.Linear, T = 1024, K and V stacked", "≤ 1.15", "< 1.05", "none"),
    GpuTarget("PEFT LoRA, same rank, bfloat16 adapters", "≥ 1.25 times faster", "1.4", "1.5"),
    GpuTarget(
        "PEFT LoRA as it comes: float32 adapters, no autocast, TF32 off", "≥ 2 times faster", "2.7", "none"
    ),
    GpuTarget("MixLoRA-style loop, any N", "≥ 1.8 times faster", "2.1", "none"),
    GpuTarget("transformers grouped_mm", "≥ 1.4 times faster", "1.55", "none"),
    GpuTarget("PEFT Arrow, N = 4", "≥ 2 times faster", "2.5", "none"),
    GpuTarget("PEFT Arrow, N = 8", "≥ 3 times faster", "3.7", "none"),
    GpuTarget("activation memory of PEFT LoRA with float32 adapters", "≤ a third", "none", "none"),
    GpuTarget("activation memory of PEFT Arrow, N = 4", "≤ a sixth", "none", "none"),
    GpuTarget("a whole FLUX step", "≤ +1.5 %", "+1 %", "+0.45 % (r = 128)"),
)

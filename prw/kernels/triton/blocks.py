"""Sizes of the kernels' tiles, by device and problem: a table, so that a benchmark can sweep it.

Chosen from what compiles for sm_80 and sm_90 without spilling registers (tests/prw/kernels/triton); not yet measured
on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

SMALL_ITEM = 32  # items of fewer tokens are sorted like tokens, since each would leave its own tile mostly empty
MOST_SPLITS = 4  # more would write and read back more than they save


@dataclass(frozen=True)
class Blocks:
    """What one program works on, and with how many warps and pipeline stages."""

    rows: int
    rank: int
    wide: int
    warps: int
    stages: int


def power_of_two(number: int) -> int:
    """Give the smallest power of two that is not below a number."""
    return 1 << max(0, number - 1).bit_length()


SHRINK: Mapping[tuple[int, int, int], Blocks] = {
    # (compute capability, bytes per element, block of rank)
    (9, 2, 16): Blocks(64, 16, 128, 4, 4),
    (9, 2, 32): Blocks(64, 32, 128, 4, 4),
    (9, 2, 64): Blocks(64, 64, 128, 4, 3),
    (9, 2, 128): Blocks(64, 128, 64, 4, 4),
    (9, 4, 16): Blocks(32, 16, 32, 4, 3),
    (9, 4, 32): Blocks(32, 32, 32, 4, 3),
    (9, 4, 64): Blocks(32, 64, 32, 4, 3),
    (8, 2, 16): Blocks(64, 16, 64, 4, 4),
    (8, 2, 32): Blocks(64, 32, 64, 4, 4),
    (8, 2, 64): Blocks(64, 64, 64, 4, 3),
    (8, 2, 128): Blocks(64, 128, 32, 8, 3),
    (8, 4, 16): Blocks(32, 16, 32, 4, 3),
    (8, 4, 32): Blocks(32, 32, 32, 4, 3),
    (8, 4, 64): Blocks(32, 64, 32, 4, 3),
    (0, 2, 16): Blocks(16, 16, 16, 1, 1),
    (0, 4, 16): Blocks(16, 16, 16, 1, 1),
}
EXPAND: Mapping[tuple[int, int, int], Blocks] = {
    (9, 2, 16): Blocks(64, 16, 128, 4, 2),
    (9, 2, 32): Blocks(64, 32, 128, 4, 2),
    (9, 2, 64): Blocks(64, 64, 128, 4, 2),
    (9, 2, 128): Blocks(64, 128, 128, 4, 1),
    (9, 4, 16): Blocks(32, 16, 64, 4, 2),
    (9, 4, 32): Blocks(32, 32, 64, 4, 2),
    (8, 2, 16): Blocks(64, 16, 128, 4, 2),
    (8, 2, 32): Blocks(64, 32, 128, 4, 2),
    (8, 2, 64): Blocks(64, 64, 128, 4, 2),
    (8, 4, 16): Blocks(32, 16, 64, 4, 2),
    (8, 4, 32): Blocks(32, 32, 64, 4, 2),
    (0, 2, 16): Blocks(16, 16, 16, 1, 1),
    (0, 4, 16): Blocks(16, 16, 16, 1, 1),
}


def blocks_of(
    table: Mapping[tuple[int, int, int], Blocks], capability: int, itemsize: int, rank: int
) -> Blocks:
    """Look up a kernel's tile: the row of the nearest device, with the largest block that the rank can fill.

    Args:
        table: SHRINK or EXPAND.
        capability: Major compute capability; 0 stands for Triton's interpreter.
        itemsize: Bytes per element.
        rank: Largest rank of the call.
    """
    family = 0 if capability == 0 else 9 if capability == 9 else 8
    ranks = sorted(block for known, size, block in table if (known, size) == (family, itemsize))
    fitting = [block for block in ranks if block <= power_of_two(rank)]
    return table[family, itemsize, max(fitting, default=ranks[0])]


@lru_cache
def device_of(index: int | None) -> tuple[int, int]:
    """Give a CUDA device's major compute capability and its number of processors; 0 and 1 for the interpreter."""
    if index is None:
        return 0, 1
    properties = torch.cuda.get_device_properties(index)
    return properties.major, properties.multi_processor_count


def splits_of(programs: int, processors: int, wide: int, block: int) -> int:
    """Say into how many chunks a shrink divides its long axis, so that a few tiles still fill the device."""
    most = min(MOST_SPLITS, processors // max(1, programs), wide // (4 * block))
    return 1 << max(0, most.bit_length() - 1)

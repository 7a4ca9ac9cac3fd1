"""Sizes of the kernels' tiles, by device and problem: tables, so that a benchmark can sweep them.

Chosen from what compiles for sm_80 and sm_90 without spilling registers (tests/prw/kernels/triton); not yet
measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

SMALL_ITEM = 32  # items of fewer tokens are sorted like tokens: each would leave its own tile mostly empty
LEAST_RANK = 16  # of tensor cores, and of Triton's dot
MOST_SPLITS = 4  # more would write and read back more than they save
LEAST_OF_SPLIT = 4  # blocks of the long axis that a part of a split has at least


@dataclass(frozen=True)
class Blocks:
    """What one program works on, and with how many warps and pipeline stages."""

    rows: int
    rank: int
    wide: int
    warps: int
    stages: int


# By major compute capability (0 is the interpreter), bytes per element, and largest block of rank.
SHRINK: dict[tuple[int, int, int], Blocks] = {
    (9, 2, 16): Blocks(64, 16, 128, 4, 4),
    (9, 2, 32): Blocks(64, 32, 128, 4, 4),
    (9, 2, 64): Blocks(64, 64, 128, 4, 3),
    (9, 2, 128): Blocks(64, 128, 64, 8, 4),
    (9, 4, 16): Blocks(32, 16, 32, 4, 3),
    (9, 4, 32): Blocks(32, 32, 32, 4, 3),
    (9, 4, 64): Blocks(32, 64, 32, 8, 3),
    (8, 2, 16): Blocks(64, 16, 64, 4, 4),
    (8, 2, 32): Blocks(64, 32, 64, 4, 4),
    (8, 2, 64): Blocks(64, 64, 64, 4, 3),
    (8, 2, 128): Blocks(64, 128, 32, 8, 4),
    (8, 4, 16): Blocks(32, 16, 32, 4, 3),
    (8, 4, 32): Blocks(32, 32, 32, 4, 3),
    (8, 4, 64): Blocks(32, 64, 32, 8, 3),
    (0, 2, 16): Blocks(16, 16, 32, 1, 1),
    (0, 4, 16): Blocks(16, 16, 32, 1, 1),
}
EXPAND: dict[tuple[int, int, int], Blocks] = {
    (9, 2, 16): Blocks(64, 16, 128, 4, 2),
    (9, 2, 32): Blocks(64, 32, 128, 4, 2),
    (9, 2, 64): Blocks(64, 64, 128, 4, 2),
    (9, 4, 16): Blocks(32, 16, 64, 4, 2),
    (9, 4, 32): Blocks(32, 32, 64, 8, 2),
    (8, 2, 16): Blocks(64, 16, 128, 4, 2),
    (8, 2, 32): Blocks(64, 32, 128, 4, 2),
    (8, 2, 64): Blocks(64, 64, 128, 8, 2),
    (8, 4, 16): Blocks(32, 16, 64, 4, 2),
    (8, 4, 32): Blocks(32, 32, 64, 8, 2),
    (0, 2, 16): Blocks(16, 16, 32, 1, 1),
    (0, 4, 16): Blocks(16, 16, 32, 1, 1),
}


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below a number."""
    return 1 << max(0, number - 1).bit_length()


def blocks_of(table: dict[tuple[int, int, int], Blocks], capability: int, itemsize: int, rank: int) -> Blocks:
    """Look up a kernel's tile: the nearest device's row with the largest block that the rank can fill.

    Args:
        table: SHRINK or EXPAND.
        capability: Major compute capability; 0 stands for Triton's interpreter.
        itemsize: Bytes per element.
        rank: Largest rank of the call.
    """
    family = capability if capability in (0, 9) else 8  # the smallest shared memory for devices not listed
    block = max(LEAST_RANK, power_of_two(rank))
    while (family, itemsize, block) not in table and block > LEAST_RANK:
        block //= 2
    return table[family, itemsize, block]


@lru_cache
def device_of(index: int | None) -> tuple[int, int]:
    """Return the major capability and number of processors of a CUDA device; (0, 1) in the interpreter."""
    if index is None:
        return 0, 1
    properties = torch.cuda.get_device_properties(index)
    return properties.major, properties.multi_processor_count


def splits_of(programs: int, processors: int, blocks: int) -> int:
    """Choose into how many parts a shrink divides its long axis, so that few tiles still fill the device.

    Args:
        programs: How many tiles there are without a split.
        processors: How many the device has.
        blocks: How many blocks the long axis has.
    """
    most = min(MOST_SPLITS, processors // max(1, programs), blocks // LEAST_OF_SPLIT)
    return 1 << max(0, most.bit_length() - 1)

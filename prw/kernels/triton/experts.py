"""What a launch is told of the experts' matrices: where each lies, and what holds for all of them."""

# Shape suffixes: R rank, W wide (features in or out).

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prw.errors import ConfigError
from prw.kernels.triton.blocks import power_of_two

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_EXPERTS = (
    64  # two stacks' addresses, ranks and strides stay well within the 4 KiB of a launch's arguments
)


@dataclass(frozen=True)
class Stack:
    """The experts' matrices of one product, [rank, wide] each.

    Attributes:
        addresses: Of every expert, padded to a power of two so that few pool sizes need compiling.
        ranks: Of every expert, padded likewise; one number where all are equal.
        leads: Strides of the axis that has not stride 1, padded likewise; one number where all are equal.
        dtype: Of all matrices. It may differ from that of the arithmetic, as under autocast: they are cast as
            they are read.
        rank: The largest rank.
        wide_unit: Whether it is the wide axis that has stride 1; else the rank's.
        kept: What lies at the addresses; it must live until the launch is queued.
    """

    addresses: tuple[int, ...]
    ranks: tuple[int, ...]
    leads: tuple[int, ...]
    dtype: torch.dtype
    rank: int
    wide_unit: bool
    kept: Sequence[Tensor]

    def pairs_with(self, other: Stack) -> bool:
        """Return whether one launch may read both stacks."""
        mine = (self.ranks, self.leads, self.wide_unit, self.dtype)
        return mine == (other.ranks, other.leads, other.wide_unit, other.dtype)


def stack_of(matrices_RW: Sequence[Tensor], like: Tensor, wide: int) -> Stack:
    """Collect the addresses and layout of the experts' matrices.

    Args:
        matrices_RW: One per expert, [rank, wide], contiguous or the transposed view of a contiguous one. Any
            other layout is copied, at each call, and so is what has another dtype than its neighbours.
        like: Has the device that they must have, and the dtype that they are copied to.
        wide: The wide axis they must have.

    Raises:
        ConfigError: if there are too many experts, or one has another device or width.
    """
    if not 0 < len(matrices_RW) <= MOST_EXPERTS:
        raise ConfigError(
            f"kernel='triton' takes 1 to {MOST_EXPERTS} experts, since their addresses are arguments of a "
            f"launch, but there are {len(matrices_RW)}. Choose kernel='auto'."
        )
    strange = {(m.device, m.shape[1]) for m in matrices_RW} - {(like.device, wide)}
    if strange:
        raise ConfigError(
            f"kernel='triton' reads experts by address, so all must be on {like.device} and {wide} wide, as "
            f"their input is; some are (device, width) {sorted((str(d), w) for d, w in strange)}. Move them "
            "with the model, or choose kernel='auto'."
        )
    if len({m.dtype for m in matrices_RW}) > 1 or matrices_RW[0].dtype not in DTYPES:
        matrices_RW = [m.to(like.dtype) for m in matrices_RW]
    wide_unit = all(m.stride(1) == 1 or m.shape[1] == 1 for m in matrices_RW)
    if not wide_unit and not all(m.stride(0) == 1 or m.shape[0] == 1 for m in matrices_RW):
        matrices_RW, wide_unit = [m.contiguous() for m in matrices_RW], True
    ranks = [m.shape[0] for m in matrices_RW]
    return Stack(
        addresses=padded([m.data_ptr() for m in matrices_RW]),
        ranks=shared(ranks),
        leads=shared([m.stride(0 if wide_unit else 1) for m in matrices_RW]),
        dtype=matrices_RW[0].dtype,
        rank=max(ranks),
        wide_unit=wide_unit,
        kept=matrices_RW,
    )


def shared(numbers: list[int]) -> tuple[int, ...]:
    """Keep one number where all are equal, else all."""
    return (numbers[0],) if len(set(numbers)) == 1 else padded(numbers)


def padded(numbers: list[int]) -> tuple[int, ...]:
    """Repeat the last number up to a power of two."""
    return (*numbers, *numbers[-1:] * (power_of_two(len(numbers)) - len(numbers)))

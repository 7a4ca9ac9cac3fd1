"""Output slices: the columns of a fused projection's output that are keys or values."""

# Shape suffixes: T tokens, O features out, G groups, S features of a slice in each group.

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class OutputSlice(NamedTuple):
    """Some columns of a projection's output, as equal parts of `groups` groups of `width` columns each.

    Blocks [q|k|v] are one group; a projection that interleaves q, k and v per head has a group per head. They
    are rows of the projection's weight, and B of a slice has as many rows, in their order.

    Attributes:
        groups: Number of groups, one after another.
        width: Columns of each group.
        start: First column of the slice in every group.
        stop: Column after the last one of the slice in every group.
    """

    groups: int
    width: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many columns the slice has, in all groups."""
        return self.groups * (self.stop - self.start)

    def indices(self) -> Tensor:
        """List the slice's columns in their order, int64 of shape [size]."""
        inside = torch.arange(self.start, self.stop)
        return (torch.arange(self.groups)[:, None] * self.width + inside).flatten()

    def view(self, output_TO: Tensor) -> Tensor:
        """View the slice of an output of shape [tokens, d_out], as [tokens, groups, columns per group]."""
        return output_TO.view(output_TO.shape[0], self.groups, self.width)[..., self.start : self.stop]


def add_to_slices(output: Tensor, deltas: Sequence[tuple[OutputSlice, Tensor]]) -> Tensor:
    """Add to some slices of an output, into a new one; all other columns keep their bits.

    Args:
        output: Of shape [..., d_out].
        deltas: Slices and what is added to them, of shape [..., size]; all with the same groups.
    """
    groups, width = deltas[0][0].groups, deltas[0][0].width
    grouped = output.unflatten(-1, (groups, width))  # [..., d_out] -> [..., groups, width]
    pieces, done = [], 0
    for piece, delta in sorted(deltas, key=lambda pair: pair[0].start):
        added = grouped[..., piece.start : piece.stop] + delta.unflatten(-1, (groups, -1))
        pieces += [grouped[..., done : piece.start], added.to(output.dtype)]
        done = piece.stop
    return torch.cat([*pieces, grouped[..., done:]], dim=-1).flatten(-2)  # -> [..., d_out]

"""Which rows of a projection's output are keys or values, and adding to those rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Some rows of a projection's output, seen as `groups` groups of `width` rows each.

    Blocks [q|k|v] are one group; a projection that interleaves q, k and v per head has a group per head.

    Attributes:
        groups: Number of groups, one after another.
        width: Rows of each group.
        start: First row of every group that is meant.
        stop: Row of every group after the last one that is meant.
    """

    groups: int
    width: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many rows are meant, in all groups."""
        return self.groups * (self.stop - self.start)

    def indices(self) -> Tensor:
        """List the rows that are meant, in their order, int64."""
        inside = torch.arange(self.start, self.stop)
        return (torch.arange(self.groups)[:, None] * self.width + inside).flatten()


class Part(NamedTuple):
    """One pair of A and B per expert at a projection: its letter in their names, and what it adds to.

    Attributes:
        letter: "k" or "v" at a projection that is keys and values at once; else empty.
        rows: The rows that it adds to; None means all.
    """

    letter: str = ""
    rows: Rows | None = None


WHOLE = (Part(),)
"""The parts of a projection that is keys or values and nothing else."""


def add_rows(output: Tensor, parts: Sequence[tuple[Rows, Tensor]]) -> Tensor:
    """Add to some rows of an output; the others keep their bits.

    Args:
        output: Of shape [..., rows].
        parts: Rows and what is added to them, of shape [..., rows.size]; all with the same groups.
    """
    groups, width = parts[0][0].groups, parts[0][0].width
    grouped = output.unflatten(-1, (groups, width))
    pieces, done = [], 0
    for rows, delta in sorted(parts, key=lambda part: part[0].start):
        added = grouped[..., rows.start : rows.stop] + delta.unflatten(-1, (groups, -1))
        pieces += [grouped[..., done : rows.start], added.to(output.dtype)]
        done = rows.stop
    return torch.cat([*pieces, grouped[..., done:]], dim=-1).flatten(-2)

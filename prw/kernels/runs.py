"""Which rows belong to which expert: the choices of a host, sorted and cut into runs."""

# Shape suffixes: N items, K choices per item, C choices in all.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

SCRATCH = 1 << 18
"""Numbers that are gathered or computed before they are used: as many as stay in a core's own cache."""


class Run(NamedTuple):
    """Consecutive choices of one expert; -1 is none."""

    expert: int
    start: int
    stop: int


class Piece(NamedTuple):
    """Consecutive choices that are worked on together: where they are, and the experts' numbers of rows."""

    here: slice
    experts: list[int]
    lengths: list[int]


@dataclass(frozen=True, eq=False)
class Segments:
    """Which rows belong to which expert.

    Attributes:
        shape: Items, choices per item, and tokens per item.
        runs: The choices in their order, cut where the expert changes.
        order: Place of each choice in [token, slot], int64 of shape [choices]; None if that is the order.
        rows: The token of each choice; None if choices are the tokens in their order.
        fixed: Whether copies of weights in another dtype can be kept.
    """

    shape: tuple[int, int, int]
    runs: tuple[Run, ...]
    order: Tensor | None
    rows: Tensor | None
    fixed: bool = True
    _pieces: dict[int, list[Piece]] = field(default_factory=dict)

    def pieces(self, wide: int) -> list[Piece]:
        """Cut the choices into pieces whose wide rows fit the scratch memory.

        Choices in their own order are not gathered, and stay one piece.
        """
        total = self.runs[-1].stop if self.runs else 0
        step = max(total, 1) if self.order is None else max(SCRATCH // wide, 1)
        if step not in self._pieces:
            self._pieces[step] = list(self._cut(total, step))
        return self._pieces[step]

    def _cut(self, total: int, step: int) -> Iterator[Piece]:
        place = 0
        for start in range(0, total, step):
            piece = Piece(slice(start, min(start + step, total)), [], [])
            while place < len(self.runs) and self.runs[place].start < piece.here.stop:
                run = self.runs[place]
                piece.experts.append(run.expert)
                piece.lengths.append(min(run.stop, piece.here.stop) - max(run.start, start))
                if run.stop > piece.here.stop:
                    break
                place += 1
            yield piece

    @property
    def whole(self) -> bool:
        """Whether every choice has an expert."""
        return all(run.expert >= 0 for run in self.runs)

    def per_choice(self, values_NK: Tensor) -> Tensor:
        """Give each choice its item's value, to [choices]."""
        values_C = values_NK.unsqueeze(1).expand(-1, self.shape[2], -1).reshape(-1)
        return values_C if self.order is None else values_C.index_select(0, self.order)

    def per_item(self, values_C: Tensor) -> Tensor:
        """Add up the choices' values over the tokens of their item, to [items, choices per item]."""
        items, choices, tokens = self.shape
        if self.order is not None:
            values_C = torch.empty_like(values_C).index_copy_(0, self.order, values_C)
        return values_C.view(items, tokens, choices).sum(1)


def plan(expert_ids_NK: Tensor, experts: int, tokens_per_item: int, fixed: bool = True) -> Segments:
    """Sort the choices by their expert, those that have none last.

    Args:
        expert_ids_NK: Chosen experts, int64 of shape [items, choices]; -1 is none.
        experts: How many there are.
        tokens_per_item: How many rows each item stands for.
        fixed: Whether copies of weights can be kept.
    """
    items, choices = expert_ids_NK.shape
    shape = (items, choices, tokens_per_item)
    if choices == 1 and tokens_per_item > 1:
        runs = merged(expert_ids_NK.flatten().tolist(), tokens_per_item)
        return Segments(shape, runs, None, None, fixed)
    ids_C = expert_ids_NK.unsqueeze(1).expand(-1, tokens_per_item, -1).reshape(-1)
    if experts == 1 and choices == 1 and (not len(ids_C) or int(ids_C.min()) == 0):
        return Segments(shape, (Run(0, 0, len(ids_C)),), None, None, fixed)
    keys_C = torch.where(ids_C < 0, experts, ids_C)
    counts = torch.bincount(keys_C, minlength=experts + 1).tolist()
    found, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            found.append(Run(expert if expert < experts else -1, start, start + count))
        start += count
    runs = tuple(found)
    if choices == 1 and len(runs) <= 1:
        return Segments(shape, runs, None, None, fixed)
    # 16 bits hold every expert's number and sort several times faster than 64.
    order = keys_C.to(torch.int16).argsort(stable=True)
    return Segments(shape, runs, order, order if choices == 1 else order // choices, fixed)


def merged(experts: Sequence[int], length: int) -> tuple[Run, ...]:
    """Cut equal neighbours into one run each; every entry stands for `length` rows."""
    runs: list[Run] = []
    for place, expert in enumerate(experts):
        start = place * length
        if runs and runs[-1].expert == expert:
            start = runs.pop().start
        runs.append(Run(expert, start, (place + 1) * length))
    return tuple(runs)

"""The sorted routed products on a host: rows in the order of their experts, one plain product per expert.

Cost does not grow with experts that nobody chose, and no expert's weights are copied or stacked. The ends of
the segments are numbers of the host, so this is for tensors that live there.
"""

# Shape suffixes: T tokens, N items, K choices per item, C choices in all, W wide, R rank.

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
    """

    shape: tuple[int, int, int]
    runs: tuple[Run, ...]
    order: Tensor | None
    rows: Tensor | None
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
        fixed: Whether copies of weights can be kept; there are none here.
    """
    items, choices = expert_ids_NK.shape
    shape = (items, choices, tokens_per_item)
    if choices == 1 and tokens_per_item > 1:
        return Segments(shape, merged(expert_ids_NK.flatten().tolist(), tokens_per_item), None, None)
    ids_C = expert_ids_NK.unsqueeze(1).expand(-1, tokens_per_item, -1).reshape(-1)
    if experts == 1 and choices == 1 and (not len(ids_C) or int(ids_C.min()) == 0):
        return Segments(shape, (Run(0, 0, len(ids_C)),), None, None)
    keys_C = torch.where(ids_C < 0, experts, ids_C)
    counts = torch.bincount(keys_C, minlength=experts + 1).tolist()
    runs, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            runs.append(Run(expert if expert < experts else -1, start, start + count))
        start += count
    if choices == 1 and len(runs) <= 1:
        return Segments(shape, tuple(runs), None, None)
    # 16 bits hold every expert's number and sort several times faster than 64.
    order = keys_C.to(torch.int16).argsort(stable=True)
    return Segments(shape, tuple(runs), order, order if choices == 1 else order // choices)


def merged(experts: Sequence[int], length: int) -> tuple[Run, ...]:
    """Cut equal neighbours into one run each; every entry stands for `length` rows."""
    runs: list[Run] = []
    for place, expert in enumerate(experts):
        start = place * length
        if runs and runs[-1].expert == expert:
            start = runs.pop().start
        runs.append(Run(expert, start, (place + 1) * length))
    return tuple(runs)


def shrink(plan: Segments, wide_TW: Tensor, stacks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Multiply every choice's row with its expert's matrix, for several stacks of matrices at once.

    Args:
        plan: The choices.
        wide_TW: Rows, of shape [tokens, wide].
        stacks: Lists of one matrix per expert, each of shape [rank, wide].

    Returns:
        For each list, of shape [choices, largest rank]; zeros where there is no expert or no such rank.
    """
    lows, rows_C = [empty_lows(plan, wide_TW, matrices) for matrices in stacks], plan.rows
    stacks = [in_dtype(matrices, wide_TW.dtype) for matrices in stacks]
    scratch = Scratch(wide_TW, wide_TW.shape[1])
    for here, experts, lengths in plan.pieces(wide_TW.shape[1]):
        wide_PW = wide_TW[here] if rows_C is None else scratch.taken(wide_TW, rows_C[here])
        parts = wide_PW.split_with_sizes(lengths)
        for low_CR, matrices in zip(lows, stacks, strict=True):
            for expert, wide, low in zip(experts, parts, low_CR[here].split_with_sizes(lengths), strict=True):
                if expert >= 0:
                    into(wide, matrices[expert], low)
    return lows


def in_dtype(matrices: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """Cast matrices where they have another dtype."""
    return matrices if matrices[0].dtype == dtype else [matrix.to(dtype) for matrix in matrices]


def into(wide: Tensor, matrix: Tensor, low: Tensor) -> None:
    """Write wide @ matrix^T; zeros stay where the matrix has no rank."""
    if matrix.shape[0] == low.shape[1]:
        torch.mm(wide, matrix.mT, out=low)
    else:
        low[:, : matrix.shape[0]] = wide @ matrix.mT


def empty_lows(plan: Segments, like: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Make room for rows in rank space, zeros where nothing will be written."""
    ranks = {matrix.shape[0] for matrix in matrices}
    shape = (plan.shape[0] * plan.shape[1] * plan.shape[2], max(ranks))
    return like.new_empty(shape) if plan.whole and len(ranks) == 1 else like.new_zeros(shape)


class Scratch:
    """Memory for one piece at a time: fresh memory would cost more than the arithmetic."""

    def __init__(self, like: Tensor, wide: int) -> None:
        """Say what it is for; memory is taken when it is needed."""
        self._like, self._wide = like, wide
        self._memory: Tensor | None = None

    def rows(self, number: int) -> Tensor:
        """Give that many rows, of any content."""
        if self._memory is None or self._memory.shape[0] < number:
            self._memory = self._like.new_empty(number, self._wide)
        return self._memory[:number]

    def taken(self, wide_TW: Tensor, rows_P: Tensor) -> Tensor:
        """Gather rows."""
        return torch.index_select(wide_TW, 0, rows_P, out=self.rows(rows_P.shape[0]))


def expand(
    plan: Segments,
    lows: Sequence[Tensor],
    stacks: Sequence[Sequence[Tensor]],
    bias: Tensor | None,
    like: Tensor,
) -> Tensor:
    """Write what the choices' experts make of their rows in rank space, added up over lists and choices.

    Args:
        plan: The choices.
        lows: For each list of matrices, of shape [choices, largest rank].
        stacks: Lists of one matrix per expert, each of shape [rank, wide].
        bias: Added to every row, of shape [wide].
        like: Whose dtype and device the result has.

    Returns:
        Of shape [tokens, wide].
    """
    tokens, wide, rows_C = plan.shape[0] * plan.shape[2], stacks[0][0].shape[1], plan.rows
    shared = plan.shape[1] > 1  # several choices add to the same row
    out_TW = like.new_zeros(tokens, wide) if shared else like.new_empty(tokens, wide)
    stacks = [in_dtype(matrices, lows[0].dtype) for matrices in stacks]
    scratch = Scratch(like, wide)
    for piece in plan.pieces(wide):
        wide_PW = out_TW[piece.here] if rows_C is None else scratch.rows(sum(piece.lengths))
        if not plan.whole:
            wide_PW.zero_()
        for place, (low_CR, matrices) in enumerate(zip(lows, stacks, strict=True)):
            out_of(piece, low_CR, matrices, wide_PW, fresh=place == 0)
        if rows_C is not None and shared:
            out_TW.index_add_(0, rows_C[piece.here], wide_PW)
        elif rows_C is not None:
            out_TW.index_copy_(0, rows_C[piece.here], wide_PW)
    return out_TW if bias is None else out_TW.add_(bias)


def out_of(piece: Piece, low_CR: Tensor, matrices: Sequence[Tensor], wide_PW: Tensor, fresh: bool) -> None:
    """Write low @ matrix for every run of a piece, or add it to what is there."""
    lows, outs = low_CR[piece.here].split_with_sizes(piece.lengths), wide_PW.split_with_sizes(piece.lengths)
    largest = low_CR.shape[1]
    for expert, low, out in zip(piece.experts, lows, outs, strict=True):
        if expert < 0:
            continue
        matrix = matrices[expert]
        low = low if matrix.shape[0] == largest else low[:, : matrix.shape[0]]
        if fresh:
            torch.mm(low, matrix, out=out)
        else:
            out.addmm_(low, matrix)


def add_to(plan: Segments, low_CR: Tensor, matrices: Sequence[Tensor], target: Tensor) -> None:
    """Add what the experts make of rows in rank space to an output, in place.

    Args:
        plan: The choices.
        low_CR: Of shape [choices, largest rank].
        matrices: One per expert, each of shape [rank, wide].
        target: Of shape [tokens, ...] with `wide` numbers for each token; any strides, any float dtype.
    """
    wide, rows_C = matrices[0].shape[1], plan.rows
    matrices = in_dtype(matrices, low_CR.dtype)
    plain = rows_C is None and target.dim() == 2 and target.dtype == low_CR.dtype
    scratch = Scratch(low_CR, wide)
    for piece in plan.pieces(wide):
        if plain:
            out_of(piece, low_CR, matrices, target[piece.here], fresh=False)
            continue
        wide_PW = scratch.rows(sum(piece.lengths))
        if not plan.whole:
            wide_PW.zero_()
        out_of(piece, low_CR, matrices, wide_PW, fresh=True)
        delta = wide_PW.to(target.dtype).view(-1, *target.shape[1:])
        if rows_C is None:
            target[piece.here] += delta
        else:
            target.index_add_(0, rows_C[piece.here], delta)


def weight_gradient(plan: Segments, low_CR: Tensor, wide_TW: Tensor, expert: int, rank: int) -> Tensor:
    """Add up the outer products of one expert's rows in rank space with its wide rows.

    Args:
        plan: The choices.
        low_CR: Of shape [choices, largest rank].
        wide_TW: Of shape [tokens, wide].
        expert: Which expert.
        rank: Its rank.

    Returns:
        Of shape [rank, wide].
    """
    gradient_RW: Tensor | None = None
    for run in plan.runs:
        if run.expert == expert:
            here = slice(run.start, run.stop)
            low_rows = low_CR[here, :rank].mT
            wide = wide_TW[here] if plan.rows is None else wide_TW.index_select(0, plan.rows[here])
            gradient_RW = low_rows @ wide if gradient_RW is None else gradient_RW.addmm_(low_rows, wide)
    return wide_TW.new_zeros(rank, wide_TW.shape[1]) if gradient_RW is None else gradient_RW

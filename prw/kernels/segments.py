"""The sorted routed products on a host: rows in the order of their experts, one plain product per expert.

Cost does not grow with experts that nobody chose, and no expert's weights are copied or stacked, unless they
are computed in another dtype: those copies are kept. The ends of the segments are numbers of the host, so
this is for tensors that live there.
"""

# Shape suffixes: T tokens, N items, K choices per item, C choices in all, W wide, R rank.

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prw.kernels.runs import Piece, Segments, plan
from prw.kernels.stacking import stacked

__all__ = ["add_to", "expand", "plan", "shrink", "weight_gradient"]


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
    stacks = [in_dtype(plan, matrices, wide_TW.dtype) for matrices in stacks]
    scratch = Scratch(wide_TW, wide_TW.shape[1])
    for here, experts, lengths in plan.pieces(wide_TW.shape[1]):
        wide_PW = wide_TW[here] if rows_C is None else scratch.taken(wide_TW, rows_C[here])
        parts = wide_PW.split_with_sizes(lengths)
        for low_CR, matrices in zip(lows, stacks, strict=True):
            for expert, wide, low in zip(experts, parts, low_CR[here].split_with_sizes(lengths), strict=True):
                if expert >= 0:
                    into(wide, matrices[expert], low)
    return lows


def in_dtype(plan: Segments, matrices: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """Give matrices in a dtype; copies are kept, so that frozen weights are not cast at every forward."""
    if all(matrix.dtype == dtype for matrix in matrices):
        return matrices
    rows = stacked(matrices, dtype, plan.fixed)
    return rows.split_with_sizes([matrix.shape[0] for matrix in matrices])


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
    stacks = [in_dtype(plan, matrices, lows[0].dtype) for matrices in stacks]
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
    matrices = in_dtype(plan, matrices, low_CR.dtype)
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
        delta = wide_PW.view(-1, *target.shape[1:])
        if rows_C is None:
            target[piece.here] += delta
        elif target.dtype == delta.dtype:
            target.index_add_(0, rows_C[piece.here], delta)
        else:
            add_and_round(target, rows_C[piece.here], delta, piece.lengths if plan.shape[1] > 1 else None)


def add_and_round(target: Tensor, rows_P: Tensor, delta: Tensor, lengths: Sequence[int] | None) -> None:
    """Add to rows of an output of fewer bits, and round the sum alone: rounding first would lose more.

    Args:
        target: Of shape [tokens, ...].
        rows_P: Which rows.
        delta: Of shape [rows, ...].
        lengths: Where to cut the rows so that none comes twice in a part; None if none does.
    """
    lengths = [rows_P.shape[0]] if lengths is None else lengths
    for rows, part in zip(rows_P.split_with_sizes(lengths), delta.split_with_sizes(lengths), strict=True):
        target.index_copy_(0, rows, (target.index_select(0, rows) + part).to(target.dtype))


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

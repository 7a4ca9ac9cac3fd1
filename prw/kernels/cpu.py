"""The sorted backend on a CPU: rows in the order of their experts, one plain product per expert.

The choices are sorted by their expert and cut into segments, one per expert; segments are worked on in chunks
whose rows fit a core's own cache. Cost does not grow with experts that nobody chose, and no expert's weights
are copied or stacked, unless they are computed in another dtype: those copies are cached. The ends of the
segments are numbers of the host, so this is for tensors that live there.
"""

# Shape suffixes: T tokens, N items, K choices per item, C choices in all (T * K), W wide (features in or
# out), R rank, P rows of one chunk.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from prw.kernels.weight_cache import stacked

SCRATCH = 1 << 18
"""Numbers that are gathered or computed before they are used: as many as stay in a core's own cache."""


class Segment(NamedTuple):
    """Consecutive choices of one expert; -1 is none."""

    expert: int
    start: int
    stop: int


class Chunk(NamedTuple):
    """Consecutive choices that are worked on together: where they are, and the experts' numbers of rows."""

    here: slice
    experts: list[int]
    lengths: list[int]


@dataclass(frozen=True, eq=False)
class CpuPlan:
    """Which rows belong to which expert.

    Attributes:
        shape: Items, choices per item, and tokens per item.
        segments: The choices in their order, cut where the expert changes.
        order: Place of each choice in [token, slot], int64 of shape [choices]; None if that is the order.
        rows: The token of each choice, int64 of shape [choices]; None if choices are the tokens in order.
        fixed: Whether copies of weights in another dtype can be cached.
    """

    shape: tuple[int, int, int]
    segments: tuple[Segment, ...]
    order: Tensor | None
    rows: Tensor | None
    fixed: bool = True
    _chunks: dict[int, list[Chunk]] = field(default_factory=dict)

    def chunks(self, wide: int) -> list[Chunk]:
        """Cut the choices into chunks whose wide rows fit the scratch memory.

        Choices in their own order are not gathered, and stay one chunk.
        """
        total = self.segments[-1].stop if self.segments else 0
        step = max(total, 1) if self.order is None else max(SCRATCH // wide, 1)
        if step not in self._chunks:
            self._chunks[step] = list(self._cut(total, step))
        return self._chunks[step]

    def _cut(self, total: int, step: int) -> Iterator[Chunk]:
        place = 0
        for start in range(0, total, step):
            chunk = Chunk(slice(start, min(start + step, total)), [], [])
            while place < len(self.segments) and self.segments[place].start < chunk.here.stop:
                segment = self.segments[place]
                chunk.experts.append(segment.expert)
                chunk.lengths.append(min(segment.stop, chunk.here.stop) - max(segment.start, start))
                if segment.stop > chunk.here.stop:
                    break
                place += 1
            yield chunk

    @property
    def all_routed(self) -> bool:
        """Whether every choice has an expert."""
        return all(segment.expert >= 0 for segment in self.segments)

    def per_choice(self, values_NK: Tensor) -> Tensor:
        """Repeat the items' values for their choices, sorted: [items, choices per item] -> [choices]."""
        values_C = values_NK.unsqueeze(1).expand(-1, self.shape[2], -1).reshape(-1)  # [N, K] -> [C]
        return values_C if self.order is None else values_C.index_select(0, self.order)

    def per_item(self, values_C: Tensor) -> Tensor:
        """Sum the choices' values over the tokens of their item: [choices] -> [items, choices per item]."""
        items, choices, tokens = self.shape
        if self.order is not None:
            values_C = torch.empty_like(values_C).index_copy_(0, self.order, values_C)
        return values_C.view(items, tokens, choices).sum(1)  # -> [N, tokens, K] -> [N, K]


def plan(expert_ids_NK: Tensor, experts: int, tokens_per_item: int, fixed: bool = True) -> CpuPlan:
    """Sort the choices by their expert, those that have none last.

    Args:
        expert_ids_NK: Chosen experts, int64 of shape [items, choices]; -1 is none.
        experts: How many there are.
        tokens_per_item: How many rows each item stands for.
        fixed: Whether copies of weights can be cached.
    """
    items, choices = expert_ids_NK.shape
    shape = (items, choices, tokens_per_item)
    if choices == 1 and tokens_per_item > 1:
        segments = merged(expert_ids_NK.flatten().tolist(), tokens_per_item)
        return CpuPlan(shape, segments, None, None, fixed)
    ids_C = expert_ids_NK.unsqueeze(1).expand(-1, tokens_per_item, -1).reshape(-1)  # [N, K] -> [C]
    if experts == 1 and choices == 1 and (not len(ids_C) or int(ids_C.min()) == 0):
        return CpuPlan(shape, (Segment(0, 0, len(ids_C)),), None, None, fixed)
    keys_C = torch.where(ids_C < 0, experts, ids_C)
    counts = torch.bincount(keys_C, minlength=experts + 1).tolist()  # the one wait for the numbers of ids
    found, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            found.append(Segment(expert if expert < experts else -1, start, start + count))
        start += count
    segments = tuple(found)
    if choices == 1 and len(segments) <= 1:
        return CpuPlan(shape, segments, None, None, fixed)
    # 16 bits hold every expert's number and sort several times faster than 64.
    order_C = keys_C.to(torch.int16).argsort(stable=True)
    return CpuPlan(shape, segments, order_C, order_C if choices == 1 else order_C // choices, fixed)


def merged(experts: Sequence[int], length: int) -> tuple[Segment, ...]:
    """Cut equal neighbours into one segment each; every entry stands for `length` rows."""
    segments: list[Segment] = []
    for place, expert in enumerate(experts):
        start = place * length
        if segments and segments[-1].expert == expert:
            start = segments.pop().start
        segments.append(Segment(expert, start, (place + 1) * length))
    return tuple(segments)


def shrink(plan: CpuPlan, wide_TW: Tensor, stacks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
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
    for here, experts, lengths in plan.chunks(wide_TW.shape[1]):
        # [tokens, wide] -> [rows of the chunk, wide], in segment order
        wide_PW = wide_TW[here] if rows_C is None else scratch.gathered(wide_TW, rows_C[here])
        parts = wide_PW.split_with_sizes(lengths)
        for low_CR, matrices in zip(lows, stacks, strict=True):
            for expert, wide, low in zip(experts, parts, low_CR[here].split_with_sizes(lengths), strict=True):
                if expert >= 0:
                    shrink_segment(wide, matrices[expert], low)
    return lows


def shrink_segment(wide: Tensor, matrix: Tensor, low: Tensor) -> None:
    """Write wide @ matrix^T: [rows, wide] -> [rows, rank]; zeros stay where the matrix has no rank."""
    if matrix.shape[0] == low.shape[1]:
        torch.mm(wide, matrix.mT, out=low)
    else:
        low[:, : matrix.shape[0]] = wide @ matrix.mT


def expand(plan: CpuPlan, lows: Sequence[Tensor], stacks: Sequence[Sequence[Tensor]]) -> Tensor:
    """Write what the choices' experts make of their rows in rank space, summed over lists and choices.

    Args:
        plan: The choices.
        lows: For each list of matrices, of shape [choices, largest rank].
        stacks: Lists of one matrix per expert, each of shape [rank, wide].

    Returns:
        Of shape [tokens, wide], in the dtype of the rows.
    """
    tokens, wide, rows_C = plan.shape[0] * plan.shape[2], stacks[0][0].shape[1], plan.rows
    shared = plan.shape[1] > 1  # several choices add to the same row
    out_TW = lows[0].new_zeros(tokens, wide) if shared else lows[0].new_empty(tokens, wide)
    stacks = [in_dtype(plan, matrices, lows[0].dtype) for matrices in stacks]
    scratch = Scratch(out_TW, wide)
    for chunk in plan.chunks(wide):
        wide_PW = out_TW[chunk.here] if rows_C is None else scratch.rows(sum(chunk.lengths))
        if not plan.all_routed:
            wide_PW.zero_()
        for place, (low_CR, matrices) in enumerate(zip(lows, stacks, strict=True)):
            expand_chunk(chunk, low_CR, matrices, wide_PW, fresh=place == 0)
        # [rows of the chunk, wide] -> [tokens, wide]
        if rows_C is not None and shared:
            out_TW.index_add_(0, rows_C[chunk.here], wide_PW)
        elif rows_C is not None:
            out_TW.index_copy_(0, rows_C[chunk.here], wide_PW)
    return out_TW


def add_to(plan: CpuPlan, low_CR: Tensor, matrices: Sequence[Tensor], target: Tensor) -> None:
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
    for chunk in plan.chunks(wide):
        if plain:
            expand_chunk(chunk, low_CR, matrices, target[chunk.here], fresh=False)
            continue
        wide_PW = scratch.rows(sum(chunk.lengths))
        if not plan.all_routed:
            wide_PW.zero_()
        expand_chunk(chunk, low_CR, matrices, wide_PW, fresh=True)
        delta = wide_PW.view(-1, *target.shape[1:])  # [rows, wide] -> [rows, groups, columns] of a slice
        if rows_C is None:
            target[chunk.here] += delta
        elif target.dtype == delta.dtype:
            target.index_add_(0, rows_C[chunk.here], delta)
        else:
            lengths = chunk.lengths if plan.shape[1] > 1 else None
            add_and_round(target, rows_C[chunk.here], delta, lengths)


def expand_chunk(
    chunk: Chunk, low_CR: Tensor, matrices: Sequence[Tensor], wide_PW: Tensor, fresh: bool
) -> None:
    """Write low @ matrix for every segment of a chunk, or add it to what is there."""
    lows, outs = low_CR[chunk.here].split_with_sizes(chunk.lengths), wide_PW.split_with_sizes(chunk.lengths)
    largest = low_CR.shape[1]
    for expert, low, out in zip(chunk.experts, lows, outs, strict=True):
        if expert < 0:
            continue
        matrix = matrices[expert]
        low = low if matrix.shape[0] == largest else low[:, : matrix.shape[0]]
        if fresh:
            torch.mm(low, matrix, out=out)  # [rows, rank] -> [rows, wide]
        else:
            out.addmm_(low, matrix)


def add_and_round(target: Tensor, rows_P: Tensor, delta: Tensor, lengths: Sequence[int] | None) -> None:
    """Add to rows of an output of fewer bits, and round the sum alone: rounding first would lose more.

    Args:
        target: Of shape [tokens, ...].
        rows_P: Which rows, int64.
        delta: Of shape [rows, ...].
        lengths: Where to cut the rows so that none comes twice in a part; None if none does.
    """
    lengths = [rows_P.shape[0]] if lengths is None else lengths
    for rows, part in zip(rows_P.split_with_sizes(lengths), delta.split_with_sizes(lengths), strict=True):
        target.index_copy_(0, rows, (target.index_select(0, rows) + part).to(target.dtype))


def weight_gradient(plan: CpuPlan, low_CR: Tensor, wide_TW: Tensor, expert: int, rank: int) -> Tensor:
    """Sum the outer products of one expert's rows in rank space with its wide rows.

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
    for segment in plan.segments:
        if segment.expert == expert:
            here = slice(segment.start, segment.stop)
            low_rows = low_CR[here, :rank].mT  # [choices, rank] -> [rank, rows of the segment]
            wide = wide_TW[here] if plan.rows is None else wide_TW.index_select(0, plan.rows[here])
            # [rank, rows] x [rows, wide] -> [rank, wide]
            gradient_RW = low_rows @ wide if gradient_RW is None else gradient_RW.addmm_(low_rows, wide)
    return wide_TW.new_zeros(rank, wide_TW.shape[1]) if gradient_RW is None else gradient_RW


def in_dtype(plan: CpuPlan, matrices: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """Cast matrices to a dtype; copies are cached, so frozen weights are not cast at every forward."""
    if all(matrix.dtype == dtype for matrix in matrices):
        return matrices
    rows = stacked(matrices, dtype, plan.fixed)
    return rows.split_with_sizes([matrix.shape[0] for matrix in matrices])


def empty_lows(plan: CpuPlan, like: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Allocate rows in rank space, [choices, largest rank]; zeros where nothing will be written."""
    ranks = {matrix.shape[0] for matrix in matrices}
    shape = (plan.shape[0] * plan.shape[1] * plan.shape[2], max(ranks))
    return like.new_empty(shape) if plan.all_routed and len(ranks) == 1 else like.new_zeros(shape)


class Scratch:
    """Memory for one chunk at a time: fresh memory would cost more than the arithmetic."""

    def __init__(self, like: Tensor, wide: int) -> None:
        """Set dtype, device and width; memory is allocated when it is needed."""
        self._like, self._wide = like, wide
        self._memory: Tensor | None = None

    def rows(self, number: int) -> Tensor:
        """Return that many uninitialised rows, [number, wide]."""
        if self._memory is None or self._memory.shape[0] < number:
            self._memory = self._like.new_empty(number, self._wide)
        return self._memory[:number]

    def gathered(self, wide_TW: Tensor, rows_P: Tensor) -> Tensor:
        """Gather rows: [tokens, wide] -> [rows of the chunk, wide]."""
        return torch.index_select(wide_TW, 0, rows_P, out=self.rows(rows_P.shape[0]))

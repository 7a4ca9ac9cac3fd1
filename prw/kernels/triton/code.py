"""Triton kernels of the routed products: shrink (wide to rank), expand (rank to wide), the sum over a split.

A program owns one tile: rows of one expert. Experts are separate parameters that are never copied together:
their addresses travel as arguments of the launch, and a program picks the one it needs. So there is no table
in device memory to fill, keep alive or invalidate, a CUDA graph captures the launch like any other, and the
interpreter runs the same code. Matrices are [rank, wide] whatever lies behind them; one of the two axes has
stride 1 (WIDE_UNIT says which), the other's stride is the `lead`.
"""

# Triton reads the annotations of its kernels, so this module does not postpone them.

import triton
import triton.language as tl

from prw.kernels.triton.sorting import COUNTS, find_tile

# Numbers for which a kernel is not compiled anew; whether addresses are aligned is told by ALIGNED.
PLAIN = [*COUNTS, "item_rows", "item_tiles", "slot", "tiles", "blocks", "addresses0", "addresses1"]


@triton.jit
def pick(values, which, COUNT: tl.constexpr):
    """Choose one of a tuple's numbers at run time; a tuple of one holds for everybody."""
    chosen = tl.full((), values[0], tl.int64)
    for k in tl.static_range(1, COUNT):
        chosen = tl.where(which == k, values[k], chosen)
    return chosen


@triton.jit
def address_of(addresses, group, dtype: tl.constexpr, EXPERTS: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the address of a group's expert.

    What Triton knows of an argument's alignment is lost on the way through `pick`; untold, it would read the
    matrices number by number and spill.
    """
    address = pick(addresses, group, EXPERTS).to(tl.pointer_type(dtype))
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def piece(
    address,
    rank,
    lead,
    wide,
    row,
    column,
    WIDE_UNIT: tl.constexpr,
    FULL_RANK: tl.constexpr,
    FULL_WIDE: tl.constexpr,
    WIDE_FIRST: tl.constexpr,
    dtype: tl.constexpr,
):
    """Load rows (of rank) and columns (of wide) of an expert: [rank, wide], or [wide, rank] if WIDE_FIRST."""
    row = row[None, :] if WIDE_FIRST else row[:, None]
    column = column[:, None] if WIDE_FIRST else column[None, :]
    at = address + row * lead + column if WIDE_UNIT else address + row + column * lead
    if FULL_RANK and FULL_WIDE:
        return tl.load(at).to(dtype)
    return tl.load(at, mask=(row < rank) & (column < wide), other=0.0).to(dtype)


@triton.jit
def rows_of(matrix, row, row_stride, column, column_stride, columns, FULL: tl.constexpr):
    """Load rows of a matrix, with zeros beyond its columns."""
    at = matrix + row[:, None] * row_stride + column[None, :].to(tl.int64) * column_stride
    if FULL:
        return tl.load(at)
    return tl.load(at, mask=(column < columns)[None, :], other=0.0)


@triton.jit
def dot(left, right, total, WIDEN: tl.constexpr):
    """Multiply and add in float32, never in tf32, so that float32 equals the reference.

    WIDEN is for the interpreter, whose own dot takes bfloat16's bits for integers (Triton 3.3 to 3.9).
    """
    if WIDEN:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit(do_not_specialize=PLAIN)
def shrink_kernel(
    x,
    low0,
    low1,
    addresses0,
    addresses1,
    ranks,
    leads,
    ids,
    order,
    sizes,
    tokens,
    slots,
    experts,
    item_rows,
    item_tiles,
    tiles,
    wide,
    rank,
    x_row,
    x_column,
    blocks,
    part,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    WIDE: tl.constexpr,
    GROUPS: tl.constexpr,
    SORTED: tl.constexpr,
    PAIR: tl.constexpr,
    EXPERTS: tl.constexpr,
    RANKS: tl.constexpr,
    LEADS: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDE_UNIT: tl.constexpr,
    FULL_RANK: tl.constexpr,
    FULL_WIDE: tl.constexpr,
    MATRIX: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Compute low[c] = x[token of c] . M_e(c)^T for a tile of choices and a block of rank.

    It goes through `blocks` blocks of wide: all, unless wide is split.
    Choices are token-major: choice = token * slots + slot. If wide is split, low is a float32 workspace in
    which the parts lie `part` elements apart. Rows of nobody's group become zeros.
    """
    slot = tl.program_id(0) // tiles
    group, token, real = find_tile(
        tl.program_id(0) % tiles, slot, ids, order, sizes, tokens, slots, experts, item_rows, item_tiles,
        ROWS, GROUPS, SORTED,
    )  # fmt: skip
    dtype: tl.constexpr = x.dtype.element_ty
    own = pick(ranks, group, RANKS).to(tl.int32)
    lead = pick(leads, group, LEADS)
    row = tl.program_id(1) * RANK + tl.arange(0, RANK)
    first = tl.program_id(2) * blocks * WIDE
    last = tl.where(group < experts, tl.minimum(first + blocks * WIDE, wide), first)
    m0 = address_of(addresses0, group, MATRIX, EXPERTS, ALIGNED)
    sum0 = tl.zeros((ROWS, RANK), tl.float32)
    if PAIR:
        m1 = address_of(addresses1, group, MATRIX, EXPERTS, ALIGNED)
        sum1 = tl.zeros((ROWS, RANK), tl.float32)
    for k in range(first, last, WIDE):
        column = k + tl.arange(0, WIDE)
        here = rows_of(x, token, x_row, column, x_column, wide, FULL_WIDE)
        matrix = piece(m0, own, lead, wide, row, column, WIDE_UNIT, FULL_RANK, FULL_WIDE, True, dtype)
        sum0 = dot(here, matrix, sum0, WIDEN)
        if PAIR:
            matrix = piece(m1, own, lead, wide, row, column, WIDE_UNIT, FULL_RANK, FULL_WIDE, True, dtype)
            sum1 = dot(here, matrix, sum1, WIDEN)
    at = tl.program_id(2).to(tl.int64) * part + (token * slots + slot)[:, None] * rank + row[None, :]
    mask = real[:, None] & (row < rank)[None, :]
    tl.store(low0 + at, sum0.to(low0.dtype.element_ty), mask=mask)
    if PAIR:
        tl.store(low1 + at, sum1.to(low1.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["splits"])
def sum_kernel(parts, total, elements, splits, BLOCK: tl.constexpr):
    """Add up the parts of a split shrink, in their order: parts is [splits, elements], float32."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    added = tl.zeros((BLOCK,), tl.float32)
    for _ in range(splits):
        added += tl.load(parts + at, mask=at < elements, other=0.0)
        parts += elements
    tl.store(total + at, added.to(total.dtype.element_ty), mask=at < elements)


@triton.jit(do_not_specialize=PLAIN)
def expand_kernel(
    out,
    low0,
    low1,
    addresses0,
    addresses1,
    ranks,
    leads,
    ids,
    order,
    sizes,
    tokens,
    slots,
    experts,
    item_rows,
    item_tiles,
    slot,
    wide,
    out_row,
    low_row0,
    low_row1,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    WIDE: tl.constexpr,
    GROUPS: tl.constexpr,
    SORTED: tl.constexpr,
    PAIR: tl.constexpr,
    EXPERTS: tl.constexpr,
    RANKS: tl.constexpr,
    LEADS: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDE_UNIT: tl.constexpr,
    FULL_RANK: tl.constexpr,
    FULL_WIDE: tl.constexpr,
    MATRIX: tl.constexpr,
    WIDEN: tl.constexpr,
    ADD: tl.constexpr,
):
    """Compute out[token of c] = low[c] . M_e(c), both lows of a pair added: a tile, a block of wide.

    It writes: rows of nobody's group get zeros. With ADD it adds to what is there and leaves
    those rows alone; that is how a second slot or a third low comes on top. It computes in low's dtype.
    """
    group, token, real = find_tile(
        tl.program_id(0), slot, ids, order, sizes, tokens, slots, experts, item_rows, item_tiles,
        ROWS, GROUPS, SORTED,
    )  # fmt: skip
    dtype: tl.constexpr = low0.dtype.element_ty
    own = pick(ranks, group, RANKS).to(tl.int32)
    lead = pick(leads, group, LEADS)
    column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    choice = token * slots + slot
    m0 = address_of(addresses0, group, MATRIX, EXPERTS, ALIGNED)
    if PAIR:
        m1 = address_of(addresses1, group, MATRIX, EXPERTS, ALIGNED)
    total = tl.zeros((ROWS, WIDE), tl.float32)
    for r in range(0, tl.where(group < experts, own, 0), RANK):
        row = r + tl.arange(0, RANK)
        low = rows_of(low0, choice, low_row0, row, 1, own, FULL_RANK)
        matrix = piece(m0, own, lead, wide, row, column, WIDE_UNIT, FULL_RANK, FULL_WIDE, False, dtype)
        total = dot(low, matrix, total, WIDEN)
        if PAIR:
            low = rows_of(low1, choice, low_row1, row, 1, own, FULL_RANK)
            matrix = piece(m1, own, lead, wide, row, column, WIDE_UNIT, FULL_RANK, FULL_WIDE, False, dtype)
            total = dot(low, matrix, total, WIDEN)
    at = out + token[:, None] * out_row + column[None, :]
    end = tl.where(group < experts, wide, 0) if ADD else wide  # nobody's rows stay as they are
    mask = real[:, None] & (column < end)[None, :]
    if ADD:
        total += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, total.to(out.dtype.element_ty), mask=mask)

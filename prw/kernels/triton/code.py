"""Triton kernels of the routed products: shrink (wide to rank), expand (rank to wide), and the sum over a split.

A program owns one tile: rows of one expert. Experts are separate parameters that are never copied together: their
addresses travel as arguments of the launch, and a program picks the one it needs. So there is no table in device
memory to fill, keep alive or invalidate, a CUDA graph captures the launch like any other, and the interpreter runs
the very same code. Matrices are [rank, wide] whatever lies behind them; one of the two axes has stride 1
(WIDE_UNIT says which), the other's stride is the `lead`.
"""

# Triton reads the annotations of its kernels, so this module does not postpone them.

import triton
import triton.language as tl

from prw.kernels.triton.sorting import item_tile, sorted_tile


@triton.jit
def find_tile(
    tile,
    slot,
    ids,
    order,
    sizes,
    tokens,
    slots,
    experts,
    item_rows,
    item_tiles,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    SORTED: tl.constexpr,
):
    """Give the tile's group (`experts` and above: nobody's), its tokens and which of its rows are real."""
    if SORTED:
        group, token, real = sorted_tile(tile, slot, order, sizes, tokens, experts, ROWS, GROUPS)
    else:
        group, token, real = item_tile(tile, slot, ids, slots, experts, item_rows, item_tiles, ROWS)
    return group, token, real


@triton.jit
def pick(values, which, COUNT: tl.constexpr):
    """Choose one of a tuple's numbers at run time; a tuple of one holds for everybody."""
    chosen = tl.full((), values[0], tl.int64)
    for k in tl.static_range(1, COUNT):
        chosen = tl.where(which == k, values[k], chosen)
    return chosen


@triton.jit
def address_of(addresses, group, dtype: tl.constexpr, EXPERTS: tl.constexpr, ALIGNED: tl.constexpr):
    """Give a group's expert's address; what Triton knows of the launch's arguments is lost on the way, so tell it."""
    address = pick(addresses, group, EXPERTS).to(tl.pointer_type(dtype))
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def matrix(
    addresses,
    ranks,
    leads,
    group,
    dtype: tl.constexpr,
    EXPERTS: tl.constexpr,
    RANKS: tl.constexpr,
    LEADS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Give an expert's address, its rank and the stride of its axis that is not of stride 1."""
    address = address_of(addresses, group, dtype, EXPERTS, ALIGNED)
    return address, pick(ranks, group, RANKS).to(tl.int32), pick(leads, group, LEADS)


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
):
    """Load rows (of rank) and columns (of wide) of an expert, as [rank, wide], or [wide, rank] if WIDE_FIRST."""
    if WIDE_FIRST:
        row = row[None, :]
        column = column[:, None]
    else:
        row = row[:, None]
        column = column[None, :]
    if WIDE_UNIT:
        at = address + row * lead + column
    else:
        at = address + row + column * lead
    if FULL_RANK and FULL_WIDE:
        return tl.load(at)
    return tl.load(at, mask=(row < rank) & (column < wide), other=0.0)


@triton.jit
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
    chunk,
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
):
    """Compute low[c] = x[token of c] . M_e(c)^T for one tile of choices, one block of rank, one chunk of wide.

    Choices are token-major: choice = token * slots + slot. With a split, low is a float32 workspace in which the
    chunks' parts lie `part` elements apart. Rows of nobody's group become zeros.
    """
    slot = tl.program_id(0) // tiles
    group, token, real = find_tile(
        tl.program_id(0) % tiles, slot, ids, order, sizes, tokens, slots, experts, item_rows, item_tiles,
        ROWS, GROUPS, SORTED,
    )  # fmt: skip
    dtype: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(1) * RANK + tl.arange(0, RANK)
    first = tl.program_id(2) * chunk
    last = tl.where(group < experts, tl.minimum(first + chunk, wide), first)
    address0, most, lead = matrix(addresses0, ranks, leads, group, dtype, EXPERTS, RANKS, LEADS, ALIGNED)
    sum0 = tl.zeros((ROWS, RANK), tl.float32)
    if PAIR:
        address1 = address_of(addresses1, group, dtype, EXPERTS, ALIGNED)
        sum1 = tl.zeros((ROWS, RANK), tl.float32)
    for k in range(first, last, WIDE):
        column = k + tl.arange(0, WIDE)
        at = x + token[:, None] * x_row + column[None, :].to(tl.int64) * x_column
        if FULL_WIDE:
            here = tl.load(at)
        else:
            here = tl.load(at, mask=(column < wide)[None, :], other=0.0)
        m0 = piece(address0, most, lead, wide, row, column, WIDE_UNIT, FULL_RANK, FULL_WIDE, True)
        sum0 = tl.dot(here, m0, sum0, input_precision="ieee")
        if PAIR:
            m1 = piece(address1, most, lead, wide, row, column, WIDE_UNIT, FULL_RANK, FULL_WIDE, True)
            sum1 = tl.dot(here, m1, sum1, input_precision="ieee")
    at = tl.program_id(2).to(tl.int64) * part + (token * slots + slot)[:, None] * rank + row[None, :]
    mask = real[:, None] & (row < rank)[None, :]
    tl.store(low0 + at, sum0.to(low0.dtype.element_ty), mask=mask)
    if PAIR:
        tl.store(low1 + at, sum1.to(low1.dtype.element_ty), mask=mask)


@triton.jit
def sum_kernel(parts, total, elements, splits, BLOCK: tl.constexpr):
    """Add up the chunks' parts of a split shrink, in their order: parts is [splits, elements], float32."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    added = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        added += tl.load(parts + split * elements + at, mask=at < elements, other=0.0)
    tl.store(total + at, added.to(total.dtype.element_ty), mask=at < elements)


@triton.jit
def low_piece(low, choice, low_row, row, rank, FULL_RANK: tl.constexpr):
    """Load the choices' rows of a low, as [rows, rank]."""
    at = low + choice[:, None] * low_row + row[None, :]
    if FULL_RANK:
        return tl.load(at)
    return tl.load(at, mask=(row < rank)[None, :], other=0.0)


@triton.jit
def expand_kernel(
    out,
    low0,
    low1,
    addresses0,
    addresses1,
    ranks,
    leads,
    bias,
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
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
):
    """Compute out[token of c] = bias + low[c] . M_e(c), both lows of a pair added, for one tile and block of wide.

    It writes: rows of nobody's group get the bias, or zeros. With ADD it adds to what is there and leaves those
    rows alone; that is how a second slot or a third low comes on top. A token has one row per slot, so one launch
    per slot writes no row twice and needs no atomics.
    """
    group, token, real = find_tile(
        tl.program_id(0), slot, ids, order, sizes, tokens, slots, experts, item_rows, item_tiles,
        ROWS, GROUPS, SORTED,
    )  # fmt: skip
    dtype: tl.constexpr = out.dtype.element_ty
    column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    choice = token * slots + slot
    address0, most, lead = matrix(addresses0, ranks, leads, group, dtype, EXPERTS, RANKS, LEADS, ALIGNED)
    if PAIR:
        address1 = address_of(addresses1, group, dtype, EXPERTS, ALIGNED)
    total = tl.zeros((ROWS, WIDE), tl.float32)
    for r in range(0, tl.where(group < experts, most, 0), RANK):
        row = r + tl.arange(0, RANK)
        m0 = piece(address0, most, lead, wide, row, column, WIDE_UNIT, FULL_RANK, FULL_WIDE, False)
        low = low_piece(low0, choice, low_row0, row, most, FULL_RANK)
        total = tl.dot(low.to(dtype), m0, total, input_precision="ieee")
        if PAIR:
            m1 = piece(address1, most, lead, wide, row, column, WIDE_UNIT, FULL_RANK, FULL_WIDE, False)
            low = low_piece(low1, choice, low_row1, row, most, FULL_RANK)
            total = tl.dot(low.to(dtype), m1, total, input_precision="ieee")
    at = out + token[:, None] * wide + column[None, :]
    if BIAS:
        total += tl.load(bias + column, mask=column < wide, other=0.0).to(tl.float32)[None, :]
    end = wide
    if ADD:  # nobody's rows stay as they are
        end = tl.where(group < experts, wide, 0)
    mask = real[:, None] & (column < end)[None, :]
    if ADD:
        total += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, total.to(dtype), mask=mask)

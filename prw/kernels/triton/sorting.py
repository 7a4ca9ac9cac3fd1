"""Triton kernels that sort choices by expert, and the search that gives a program its tile of them.

A counting sort in two launches: every block of tokens counts its experts, then every block places its tokens
behind those of the blocks before it. It is stable, takes no atomics and gives the same bits every time. Each
slot (the first, second, ... choice of a token) is sorted for itself, so no token comes twice in one slot's
order. What is routed nowhere comes last, as one more group behind the last expert.
"""

# Triton reads the annotations of its kernels, so this module does not postpone them.

import triton
import triton.language as tl

COUNTS = ["tokens", "slots", "experts"]  # numbers for which a kernel is not compiled anew


@triton.jit
def group_of(ids, experts):
    """Return each id's group: its expert, or the last group if it has none."""
    return tl.where((ids >= 0) & (ids < experts), ids, experts).to(tl.int32)


@triton.jit
def hits_of_block(ids, tokens, slots, experts, BLOCK: tl.constexpr, GROUPS: tl.constexpr):
    """Return this block's tokens, and a one-hot of their groups, [BLOCK, GROUPS]."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = ids + token.to(tl.int64) * slots + tl.program_id(1)
    group = group_of(tl.load(at, mask=token < tokens, other=-1), experts)
    hits = (group[:, None] == tl.arange(0, GROUPS)[None, :]) & (token < tokens)[:, None]
    return token, hits.to(tl.int32)


@triton.jit(do_not_specialize=COUNTS)
def count_kernel(ids, counts, tokens, slots, experts, BLOCK: tl.constexpr, GROUPS: tl.constexpr):
    """Count the groups of one block of tokens in one slot: counts is [slots, blocks, GROUPS], int32."""
    _, hits = hits_of_block(ids, tokens, slots, experts, BLOCK, GROUPS)
    row = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(counts + row * GROUPS + tl.arange(0, GROUPS), tl.sum(hits, 0))


@triton.jit(do_not_specialize=COUNTS)
def place_kernel(
    ids,
    counts,
    order,
    sizes,
    tokens,
    slots,
    experts,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write one block's tokens to their places: order is [slots, tokens], sizes [slots, GROUPS], int32."""
    block = tl.program_id(0)
    blocks = tl.num_programs(0)
    slot = tl.program_id(1)
    group = tl.arange(0, GROUPS)
    total = tl.zeros((GROUPS,), tl.int32)
    earlier = tl.zeros((GROUPS,), tl.int32)
    for first in range(0, blocks, CHUNK):
        row = first + tl.arange(0, CHUNK)
        at = (slot * blocks + row)[:, None] * GROUPS + group[None, :]
        part = tl.load(counts + at, mask=(row < blocks)[:, None], other=0)
        total += tl.sum(part, 0)
        earlier += tl.sum(tl.where((row < block)[:, None], part, 0), 0)
    if block == 0:
        tl.store(sizes + slot * GROUPS + group, total)
    token, hits = hits_of_block(ids, tokens, slots, experts, BLOCK, GROUPS)
    start = tl.cumsum(total, 0) - total + earlier
    place = tl.sum(hits * (start[None, :] + tl.cumsum(hits, 0) - 1), 1)
    tl.store(order + slot.to(tl.int64) * tokens + place, token, mask=token < tokens)


@triton.jit
def sorted_tile(tile, slot, order, sizes, tokens, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """Return a tile's group, its tokens and which rows of it are real; a surplus tile has none.

    Every tile holds one group only. The grid is an upper bound, so each program does the search itself, over
    the groups' sizes, of which there are few. Rows that are not real read token 0, and nobody reads the
    result.
    """
    group = tl.arange(0, GROUPS)
    size = tl.load(sizes + slot * GROUPS + group)
    tiles = (size + ROWS - 1) // ROWS
    mine = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    first_tile = tl.sum(tl.where(group < mine, tiles, 0), 0)
    start = tl.sum(tl.where(group < mine, size, 0), 0)
    row = (tile - first_tile) * ROWS + tl.arange(0, ROWS)
    real = row < tl.sum(tl.where(group == mine, size, 0), 0)
    at = order + slot.to(tl.int64) * tokens + start + row
    return mine, tl.load(at, mask=real, other=0).to(tl.int64), real


@triton.jit
def item_tile(tile, slot, ids, slots, experts, item_rows, item_tiles, ROWS: tl.constexpr):
    """Return a tile's group, tokens and real rows where an item is many consecutive rows: nothing to sort."""
    item = (tile // item_tiles).to(tl.int64)
    row = (tile % item_tiles) * ROWS + tl.arange(0, ROWS)
    real = row < item_rows
    group = group_of(tl.load(ids + item * slots + slot), experts)
    return group, item * item_rows + tl.where(real, row, 0), real


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
    """Return the tile's group (`experts` and above: nobody's), its tokens and which of its rows are real."""
    if SORTED:
        group, token, real = sorted_tile(tile, slot, order, sizes, tokens, ROWS, GROUPS)
    else:
        group, token, real = item_tile(tile, slot, ids, slots, experts, item_rows, item_tiles, ROWS)
    return group, token, real

"""The products of which the routed projection's forward and backward are made, as launches of kernels."""

# Shape suffixes: T tokens, C choices (token-major), I wide axis (features in or out), R rank.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from prw.errors import ConfigError
from prw.kernels.triton import blocks
from prw.kernels.triton.code import expand_kernel, shrink_kernel, sum_kernel
from prw.kernels.triton.experts import DTYPES, Stack, stack_of
from prw.kernels.triton.planning import INTERPRETED, Plan, check_device

IN_TRITON = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
SUM_BLOCK = 1024


def shrink(plan: Plan, wide_TI: Tensor, stacks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Take every choice's token through its expert's matrix, from wide to rank.

    Two stacks of the same ranks and layout go in one launch that reads the tokens once. Where the tiles are
    too few to fill the device, the wide axis is split and the parts are added in a second pass, in a fixed
    order.

    Args:
        plan: Where every choice goes.
        wide_TI: Tokens, of any strides.
        stacks: Per stack, every expert's matrix [rank, I].

    Returns:
        Per stack [C, R], R its largest rank: tokens . matrix^T, zeros beyond an expert's own rank and for
        choices of no expert; in the tokens' dtype.

    Raises:
        ConfigError: if tokens or experts are not what the kernels can read.
    """
    check(plan, wide_TI, wide_TI.shape[0])
    made = [stack_of(matrices, wide_TI, wide_TI.shape[1]) for matrices in stacks]
    with torch.cuda.device_of(wide_TI):
        pairs = [shrink_pair(plan, wide_TI, [made[i] for i in pair]) for pair in in_pairs(made)]
    return [low for lows in pairs for low in lows]


def shrink_pair(plan: Plan, wide_TI: Tensor, made: Sequence[Stack]) -> tuple[Tensor, ...]:
    """Make one or two lows in one launch, and a second one if the wide axis was split."""
    rank, wide = made[0].rank, wide_TI.shape[1]
    lows = wide_TI.new_empty((len(made), plan.choices, rank))
    if plan.choices == 0:
        return lows.unbind()
    capability, processors = blocks.device_of(index_of(wide_TI))
    block = blocks.blocks_of(blocks.SHRINK, capability, wide_TI.element_size(), rank)
    tiles, place = where(plan, block.rows)
    over_rank, over_wide = triton.cdiv(rank, block.rank), triton.cdiv(wide, block.wide)
    programs = triton.cdiv(plan.choices, block.rows) * over_rank
    splits = blocks.splits_of(programs, processors, over_wide)
    parts = lows if splits == 1 else lows.new_empty((splits, *lows.shape), dtype=torch.float32)
    into = parts.view(-1, plan.choices, rank)
    shrink_kernel[tiles * plan.slots, over_rank, splits](
        wide_TI, into[0], into[len(made) - 1], *arguments_of(made), *place, tiles,
        wide, rank, wide_TI.stride(0), wide_TI.stride(1), triton.cdiv(over_wide, splits), lows.numel(),
        **constants(plan, made, block, wide),
    )  # fmt: skip
    if splits > 1:
        grid = (triton.cdiv(lows.numel(), SUM_BLOCK),)
        sum_kernel[grid](parts, lows, lows.numel(), splits, BLOCK=SUM_BLOCK, enable_fp_fusion=True)
    return lows.unbind()


def expand(
    plan: Plan,
    lows: Sequence[Tensor],
    stacks: Sequence[Sequence[Tensor]],
) -> Tensor:
    """Take every choice through its expert's matrix, from rank to wide, and add up what belongs to one token.

    The output is written, not added to. Each slot is one launch, in order, that meets every token once: no
    row is written by two programs, so plain stores do and the same input gives the same bits. (One launch for
    all slots would need atomics, or every expert for every tile of tokens.)

    Args:
        plan: Where every choice goes.
        lows: Per stack, [C, R].
        stacks: Per stack, every expert's matrix [rank, I].

    Returns:
        The sum over lows and slots of low . matrix, of shape [T, I], in the lows' dtype.

    Raises:
        ConfigError: if tokens or experts are not what the kernels can read.
    """
    out_TI = lows[0].new_empty((plan.tokens, stacks[0][0].shape[1]))
    expand_into(plan, lows, stacks, out_TI, add=False)
    return out_TI


def add_to(plan: Plan, low_CR: Tensor, matrices: Sequence[Tensor], target: Tensor) -> None:
    """Take every choice through its expert's matrix, from rank to wide, onto an output, in place.

    Args:
        plan: Where every choice goes.
        low_CR: Rows in rank space.
        matrices: Every expert's matrix [rank, I].
        target: Of shape [T, ...] with I numbers per token. One launch adds to what has two axes and stride 1
            along the second; anything else is added to by torch.

    Raises:
        ConfigError: if tokens or experts are not what the kernels can read.
    """
    if target.dim() == 2 and target.stride(1) == 1 and target.dtype in DTYPES:
        expand_into(plan, [low_CR], [matrices], target, add=True)
    else:
        target += expand(plan, [low_CR], [matrices]).view(target.shape)


def expand_into(
    plan: Plan,
    lows: Sequence[Tensor],
    stacks: Sequence[Sequence[Tensor]],
    out_TI: Tensor,
    add: bool,
) -> None:
    """Write to an output, or add to it, slot by slot and pair of lows by pair of lows."""
    check(plan, lows[0], plan.tokens)
    check(plan, out_TI, out_TI.shape[0])
    made = [stack_of(matrices, lows[0], out_TI.shape[1]) for matrices in stacks]
    lows = [readable(plan, low, stack, lows[0].dtype) for low, stack in zip(lows, made, strict=True)]
    if plan.choices == 0:
        return
    launches = [(slot, pair) for slot in range(plan.slots) for pair in in_pairs(made)]
    with torch.cuda.device_of(out_TI):
        for number, (slot, pair) in enumerate(launches):
            taken = [made[i] for i in pair], [lows[i] for i in pair]
            expand_pair(plan, out_TI, *taken, slot, add=add or number > 0)


def expand_pair(
    plan: Plan,
    out_TI: Tensor,
    made: Sequence[Stack],
    lows: Sequence[Tensor],
    slot: int,
    add: bool,
) -> None:
    """Write, or add, one slot's part of one or two lows in one launch."""
    wide = out_TI.shape[1]
    capability, _ = blocks.device_of(index_of(out_TI))
    block = blocks.blocks_of(blocks.EXPAND, capability, lows[0].element_size(), made[0].rank)
    tiles, place = where(plan, block.rows)
    expand_kernel[tiles, triton.cdiv(wide, block.wide)](
        out_TI, lows[0], lows[-1], *arguments_of(made), *place, slot,
        wide, out_TI.stride(0), lows[0].stride(0), lows[-1].stride(0),
        **constants(plan, made, block, wide), ADD=add,
    )  # fmt: skip


def weight_gradient(plan: Plan, low_CR: Tensor, wide_TI: Tensor, expert: int, rank: int) -> Tensor:
    """Add up outer(low of c, token of c) over one expert's choices, as [rank, I].

    One product over all tokens, the others' rows masked to zero in rank space: which rows are the expert's is
    known on the device only, and a library's product over all of them costs less than asking.
    """
    mine_TK1 = (plan.ids_per_token() == expert).unsqueeze(-1)
    low_TKR = low_CR[:, :rank].unflatten(0, (plan.tokens, plan.slots))
    kept_TKR = torch.where(mine_TK1, low_TKR, 0)
    kept_TR = kept_TKR.squeeze(1) if plan.slots == 1 else kept_TKR.sum(1)
    return kept_TR.to(wide_TI.dtype).mT @ wide_TI


def in_pairs(made: Sequence[Stack]) -> Iterator[tuple[int, ...]]:
    """Find which stacks share a launch: neighbours that have ranks and layout in common."""
    at = 0
    while at < len(made):
        two = at + 1 < len(made) and made[at].pairs_with(made[at + 1])
        yield (at, at + 1) if two else (at,)
        at += 2 if two else 1


def arguments_of(made: Sequence[Stack]) -> tuple[tuple[int, ...], ...]:
    """Return the arguments of a launch that describe the experts of one or two stacks."""
    return made[0].addresses, made[-1].addresses, made[0].ranks, made[0].leads


def where(plan: Plan, rows: int) -> tuple[int, tuple[Tensor | int, ...]]:
    """Return the number of tiles per slot (an upper bound if sorted), and what finds a program's tile."""
    item_tiles = triton.cdiv(plan.tokens_per_item, rows)
    if plan.order is None:
        tiles = len(plan.ids) * item_tiles
    else:
        tiles = min(plan.tokens, triton.cdiv(plan.tokens, rows) + plan.experts + 1)
    # Where nothing was sorted, the ids stand in for what the kernel does not read.
    sort = [plan.ids if tensor is None else tensor for tensor in (plan.order, plan.sizes)]
    counts = plan.tokens, plan.slots, plan.experts, plan.tokens_per_item, item_tiles
    return tiles, (plan.ids, *sort, *counts)


def constants(plan: Plan, made: Sequence[Stack], block: blocks.Blocks, wide: int) -> dict[str, Any]:
    """Return what a kernel is compiled for; fused multiply-add is Triton's own choice up to 3.9."""
    first = made[0]
    return {
        "ROWS": block.rows,
        "RANK": block.rank,
        "WIDE": block.wide,
        "GROUPS": plan.groups,
        "SORTED": plan.order is not None,
        "PAIR": len(made) == 2,
        "EXPERTS": len(first.addresses),
        "RANKS": len(first.ranks),
        "LEADS": len(first.leads),
        "ALIGNED": all(address % 16 == 0 for stack in made for address in stack.addresses),
        "WIDE_UNIT": first.wide_unit,
        "FULL_RANK": len(first.ranks) == 1 and first.rank % block.rank == 0,
        "FULL_WIDE": wide % block.wide == 0,
        "MATRIX": IN_TRITON[first.dtype],
        "WIDEN": INTERPRETED,
        "num_warps": block.warps,
        "num_stages": block.stages,
        "enable_fp_fusion": True,
    }


def readable(plan: Plan, low_CR: Tensor, stack: Stack, dtype: torch.dtype) -> Tensor:
    """Return a low whose rows can be read by address, in the dtype of the first.

    Raises:
        ConfigError: if it has another shape than the plan and the experts say, or lies on another device.
    """
    if low_CR.shape != (plan.choices, stack.rank) or low_CR.device != plan.ids.device:
        raise ConfigError(
            f"expected rank-space rows of shape {(plan.choices, stack.rank)} on {plan.ids.device}, as "
            f"`shrink` gives for this decision and these experts, but came "
            f"{tuple(low_CR.shape)} on {low_CR.device}."
        )
    low_CR = low_CR.to(dtype)
    return low_CR if low_CR.stride(1) == 1 else low_CR.contiguous()


def index_of(tensor: Tensor) -> int | None:
    """Return the index of a tensor's CUDA device, or None in the interpreter."""
    return tensor.get_device() if tensor.is_cuda else None


def check(plan: Plan, tensor: Tensor, tokens: int) -> None:
    """Refuse what the kernels would read wrongly.

    Raises:
        ConfigError: if dtype, device or number of tokens are not what the plan and the kernels take.
    """
    check_device(tensor)
    if tensor.dtype not in DTYPES:
        raise ConfigError(
            f"kernel='triton' computes in float32, bfloat16 or float16, but came {tensor.dtype}. Choose "
            "kernel='auto' or 'reference' for other dtypes."
        )
    if tensor.device != plan.ids.device or tokens != plan.tokens:
        raise ConfigError(
            f"the decision is for {plan.tokens} tokens on {plan.ids.device}, but came {tokens} tokens on "
            f"{tensor.device}. Hidden states and expert ids must come from the same call of the same site."
        )

"""The sorted backend on CUDA: `torch.nn.functional.grouped_mm` over rows sorted by expert.

What is known of grouped_mm is kept here: it wants 16-bit floats and compute capability 9 (elsewhere it loops
and waits for the device), strides of 16 bytes, int32 ends, contiguous rows, and it leaves rows behind the
last end as they were. Whole samples need no sorting: their experts' matrices are gathered and multiplied in
one batch.
"""

# Shape suffixes: T tokens, N items, K choices per item, C choices in all (T * K), W wide (features in or
# out), R rank, E experts. X and Y are W and R, or R and W.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prw.kernels import dense
from prw.kernels.weight_cache import stacked


@dataclass(frozen=True, eq=False)
class GroupedPlan:
    """The choices in the order of their experts, those that have none last.

    Attributes:
        choices: The same in their own order.
        order: Place in [token, slot] of each, int64 of shape [choices]; None for whole samples.
        inverse: Where each [token, slot] went.
        ends: End of each expert's rows, int32 of shape [experts].
    """

    choices: dense.DensePlan
    order: Tensor | None = None
    inverse: Tensor | None = None
    ends: Tensor | None = None

    def per_choice(self, values_NK: Tensor) -> Tensor:
        """Repeat the items' values for their choices: [items, choices per item] -> [choices]."""
        values_C = self.choices.per_choice(values_NK)
        return values_C if self.order is None else values_C.index_select(0, self.order)

    def per_item(self, values_C: Tensor) -> Tensor:
        """Sum the choices' values over the tokens of their item: [choices] -> [items, choices per item]."""
        values_C = values_C if self.inverse is None else values_C.index_select(0, self.inverse)
        return self.choices.per_item(values_C)

    @property
    def ids(self) -> Tensor:
        """Expert of each choice, in this order."""
        return self.choices.ids if self.order is None else self.choices.ids.index_select(0, self.order)


def missing(device: torch.device, dtype: torch.dtype, rank: int, wide: int = 8) -> str:
    """Describe what grouped_mm lacks for a case; empty if nothing."""
    if not hasattr(F, "grouped_mm"):
        return "torch 2.10 or newer"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"16-bit arithmetic (this is {dtype}; use autocast)"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return "a CUDA device of compute capability 9.0 or more"
    if wide % 8:
        return f"an input width that is a multiple of 8 (this is {wide})"
    return "" if rank % 8 == 0 else f"a rank that is a multiple of 8 (this is {rank})"


def plan(expert_ids_NK: Tensor, experts: int, tokens_per_item: int, fixed: bool = True) -> GroupedPlan:
    """Sort the choices on the device; see `prw.kernels.cpu.plan` for the arguments."""
    choices = dense.plan(expert_ids_NK, experts, tokens_per_item, fixed)
    if tokens_per_item > 1:
        return GroupedPlan(choices)
    keys_C = torch.where(choices.ids < 0, experts, choices.ids)
    order_C = keys_C.argsort(stable=True)
    places_C = torch.arange(len(order_C), device=order_C.device)
    inverse_C = torch.empty_like(order_C).scatter_(0, order_C, places_C)
    counts_E = (keys_C.unsqueeze(-1) == torch.arange(experts, device=keys_C.device)).sum(0)  # [C, E] -> [E]
    return GroupedPlan(choices, order_C, inverse_C, counts_E.cumsum(0).to(torch.int32))


def cube(plan: GroupedPlan, matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Stack all matrices into one [experts, largest rank, wide], zeros where an expert has fewer ranks."""
    ranks = [matrix.shape[0] for matrix in matrices]
    height = max(ranks) if len(set(ranks)) > 1 else 0
    rows = stacked(matrices, dtype, plan.choices.fixed, height)
    return rows.view(len(matrices), -1, rows.shape[1])  # [experts * rank, wide] -> [experts, rank, wide]


def by_group(plan: GroupedPlan, rows_CX: Tensor, cube_EXY: Tensor) -> Tensor:
    """Multiply every choice's row with its expert's matrix; zeros where there is none."""
    if plan.ends is None:
        items, slots, tokens = plan.choices.shape
        ids_NK = plan.choices.ids.view(items, tokens, slots)[:, 0].reshape(-1)  # [C] -> [N * K]
        # [C, X] -> [N, tokens, K, X] -> [N * K, tokens, X]: one product per item and choice
        rows = rows_CX.reshape(items, tokens, slots, rows_CX.shape[1]).transpose(1, 2).flatten(0, 1)
        batch = torch.bmm(rows, cube_EXY.index_select(0, ids_NK.clamp(min=0)))  # -> [N * K, tokens, Y]
        out_CY = batch.unflatten(0, (items, slots)).transpose(1, 2).flatten(0, 2)  # -> [C, Y]
    else:
        out_CY = F.grouped_mm(rows_CX.contiguous(), cube_EXY, offs=plan.ends)  # [C, X] x [E, X, Y] -> [C, Y]
    return torch.where((plan.ids >= 0).unsqueeze(-1), out_CY, out_CY.new_zeros(()))


def gathered(plan: GroupedPlan, wide_TW: Tensor) -> Tensor:
    """Gather the token's row of every choice: [tokens, wide] -> [choices, wide]."""
    slots = plan.choices.per_token
    if plan.order is None:
        return wide_TW if slots == 1 else wide_TW.repeat_interleave(slots, 0)  # choices in token order
    return wide_TW.index_select(0, plan.order // slots if slots > 1 else plan.order)


def shrink(plan: GroupedPlan, wide_TW: Tensor, stacks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Multiply with A, into rank space; see `prw.kernels.cpu.shrink` for the arguments."""
    wide_CW = gathered(plan, wide_TW)
    return [by_group(plan, wide_CW, cube(plan, matrices, wide_CW.dtype).mT) for matrices in stacks]


def expand(plan: GroupedPlan, lows: Sequence[Tensor], stacks: Sequence[Sequence[Tensor]]) -> Tensor:
    """Multiply with B, out of rank space; see `prw.kernels.cpu.expand` for the arguments."""
    parts = [
        by_group(plan, low_CR, cube(plan, matrices, low_CR.dtype))
        for low_CR, matrices in zip(lows, stacks, strict=True)
    ]
    wide_CW = parts[0]
    for part_CW in parts[1:]:
        wide_CW = wide_CW + part_CW
    if plan.inverse is not None:
        wide_CW = wide_CW.index_select(0, plan.inverse)  # sorted -> token order
    if plan.choices.per_token > 1:
        wide_CW = wide_CW.unflatten(0, (-1, plan.choices.per_token)).sum(1)  # -> [tokens, wide]
    return wide_CW


def add_to(plan: GroupedPlan, low_CR: Tensor, matrices: Sequence[Tensor], target: Tensor) -> None:
    """Multiply with B and add to an output in place; see `prw.kernels.cpu.add_to` for the arguments."""
    wide_TW = expand(plan, [low_CR], [matrices])
    target.add_(wide_TW.view_as(target))  # in the wider dtype, and rounded once


def weight_gradient(plan: GroupedPlan, low_CR: Tensor, wide_TW: Tensor, expert: int, rank: int) -> Tensor:
    """Sum one expert's outer products; see `prw.kernels.cpu.weight_gradient` for the arguments."""
    low_CR = torch.where((plan.ids == expert).unsqueeze(-1), low_CR[:, :rank], low_CR.new_zeros(()))
    if plan.inverse is not None:  # of narrow rows, not of wide ones
        low_CR = low_CR.index_select(0, plan.inverse)
    if plan.choices.per_token > 1:
        low_CR = low_CR.unflatten(0, (-1, plan.choices.per_token)).sum(1)  # -> [tokens, rank]
    return low_CR.mT @ wide_TW  # [rank, tokens] x [tokens, wide] -> [rank, wide]

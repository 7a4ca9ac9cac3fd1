"""The backend without data-dependent shapes: all experts at once, and the choice made in rank space.

Nothing synchronises with the host and nothing is sorted, so this suits accelerators while experts x rank is
small; cost grows with it. A weight that is not finite spoils what is multiplied with it: B every output, A
every input's gradient.
"""

# Shape suffixes: T tokens, N items, K choices per item, C choices in all (T * K), W wide (features in or
# out), R rank, S sum of ranks.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prw.kernels.weight_cache import stacked


@dataclass(frozen=True, eq=False)
class DensePlan:
    """The choices in the order of tokens and slots.

    Attributes:
        ids: Expert of each choice, int64 of shape [choices]; -1 is none.
        shape: Items, choices per item, and tokens per item.
        fixed: Whether copies of frozen weights can be cached.
    """

    ids: Tensor
    shape: tuple[int, int, int]
    fixed: bool = True

    @property
    def per_token(self) -> int:
        """Choices of each token."""
        return self.shape[1]

    def per_choice(self, values_NK: Tensor) -> Tensor:
        """Repeat the items' values for their choices: [items, choices per item] -> [choices]."""
        return values_NK.unsqueeze(1).expand(-1, self.shape[2], -1).reshape(-1)  # -> [N, tokens, K] -> [C]

    def per_item(self, values_C: Tensor) -> Tensor:
        """Sum the choices' values over the tokens of their item: [choices] -> [items, choices per item]."""
        items, choices, tokens = self.shape
        return values_C.view(items, tokens, choices).sum(1)  # -> [N, tokens, K] -> [N, K]


def plan(expert_ids_NK: Tensor, experts: int, tokens_per_item: int, fixed: bool = True) -> DensePlan:
    """Keep the choices in token order; see `prw.kernels.cpu.plan` for the arguments."""
    items, choices = expert_ids_NK.shape
    ids_C = expert_ids_NK.unsqueeze(1).expand(-1, tokens_per_item, -1).reshape(-1)  # [N, K] -> [C]
    return DensePlan(ids_C, (items, choices, tokens_per_item), fixed)


def places(plan: DensePlan, matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Find each choice's rows among the stacked ones: where they are, and which of them exist."""
    ranks = [matrix.shape[0] for matrix in matrices]
    largest = max(ranks)
    steps_R = torch.arange(largest, device=plan.ids.device)
    safe_C1 = plan.ids.clamp(min=0).unsqueeze(-1)
    exists_CR = (plan.ids >= 0).unsqueeze(-1)
    if len(set(ranks)) == 1:
        return safe_C1 * largest + steps_R, exists_CR.expand(-1, largest)
    starts, total = [], 0
    for rank in ranks:
        # Filled on the device: a list would be copied from the host, and waited for.
        starts.append(torch.full((1, 2), total, device=plan.ids.device, dtype=torch.int64))
        starts[-1][:, 1] = rank
        total += rank
    here_C2 = torch.cat(starts).index_select(0, safe_C1.flatten())
    exists_CR = exists_CR & (steps_R < here_C2[:, 1:])
    return torch.where(exists_CR, here_C2[:, :1] + steps_R, 0), exists_CR


def shrink(plan: DensePlan, wide_TW: Tensor, stacks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Multiply every row with every matrix, and keep those of its experts.

    See `prw.kernels.cpu.shrink` for the arguments.
    """
    lows = []
    for matrices in stacks:
        all_TS = wide_TW @ stacked(matrices, wide_TW.dtype, plan.fixed).mT  # [tokens, wide] -> [tokens, S]
        where_CR, exists_CR = places(plan, matrices)
        slots = plan.per_token
        all_CS = all_TS if slots == 1 else all_TS.repeat_interleave(slots, 0)  # -> [choices, S]
        # [choices, S] -> [choices, rank]; gathered, not multiplied by one: 0 * inf would leak into all rows.
        lows.append(torch.where(exists_CR, all_CS.gather(1, where_CR), all_TS.new_zeros(())))
    return lows


def spread(plan: DensePlan, low_CR: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Scatter each choice's row to its expert's columns, zeros elsewhere: [choices, rank] -> [tokens, S]."""
    where_CR, exists_CR = places(plan, matrices)
    tokens = plan.shape[0] * plan.shape[2]
    total = sum(matrix.shape[0] for matrix in matrices)
    low_CR = torch.where(exists_CR, low_CR[:, : where_CR.shape[1]], low_CR.new_zeros(()))
    spread_TS = low_CR.new_zeros(tokens, total)
    for slot in range(plan.per_token):  # one after another: two slots of a token may not write at once
        mine = slice(slot, None, plan.per_token)
        # What does not exist adds zero to the first place.
        spread_TS.scatter_add_(1, where_CR[mine], low_CR[mine])
    return spread_TS


def expand(plan: DensePlan, lows: Sequence[Tensor], stacks: Sequence[Sequence[Tensor]]) -> Tensor:
    """Write what the experts make of their rows, added up over lists and slots.

    See `prw.kernels.cpu.expand` for the arguments.
    """
    factors = [
        (spread(plan, low_CR, matrices), stacked(matrices, low_CR.dtype, plan.fixed))
        for low_CR, matrices in zip(lows, stacks, strict=True)
    ]
    (spread_TS, rows_SW), *further = factors
    out_TW = spread_TS @ rows_SW  # [tokens, S] -> [tokens, wide]
    for spread_TS, rows_SW in further:
        out_TW.addmm_(spread_TS, rows_SW)
    return out_TW


def add_to(plan: DensePlan, low_CR: Tensor, matrices: Sequence[Tensor], target: Tensor) -> None:
    """Add what the experts make of rows in rank space to an output, in place.

    See `prw.kernels.cpu.add_to` for the arguments.
    """
    spread_TS, rows_SW = spread(plan, low_CR, matrices), stacked(matrices, low_CR.dtype, plan.fixed)
    if target.dim() == 2 and target.dtype == spread_TS.dtype:
        target.addmm_(spread_TS, rows_SW)
    else:
        target.add_((spread_TS @ rows_SW).view_as(target))  # in the wider dtype, and rounded once


def weight_gradient(plan: DensePlan, low_CR: Tensor, wide_TW: Tensor, expert: int, rank: int) -> Tensor:
    """Sum one expert's outer products, as one product over all rows with zeros for the others.

    See `prw.kernels.cpu.weight_gradient` for the arguments.
    """
    mine_C1 = (plan.ids == expert).unsqueeze(-1)
    low_CR = torch.where(mine_C1, low_CR[:, :rank], low_CR.new_zeros(()))
    if plan.per_token > 1:
        low_CR = low_CR.view(-1, plan.per_token, rank).sum(1)  # [choices, rank] -> [tokens, rank]
    return low_CR.mT @ wide_TW  # [rank, tokens] x [tokens, wide] -> [rank, wide]

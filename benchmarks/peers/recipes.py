"""Baselines by a recipe: MixLoRA's loop in our own words, and transformers' grouped_mm function itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.integrations.moe import grouped_mm_experts_forward

from benchmarks.peers.block import KeysAndValues, Top1
from benchmarks.points import SCALE, Adapter, Point, Weights


class Pair(nn.Module):
    """One LoRA pair."""

    def __init__(self, adapter: Adapter, trains: bool) -> None:
        super().__init__()
        self.down = nn.Parameter(adapter.down.clone(), requires_grad=trains)
        self.up = nn.Parameter(adapter.up.clone(), requires_grad=trains)

    def forward(self, hidden: Tensor) -> Tensor:
        low = nn.functional.linear(hidden.to(self.down.dtype), self.down)
        return nn.functional.linear(low, self.up)


class MixLoraLoop(nn.Module):
    """The base once for all tokens; then per expert: find its rows, gather, LoRA, weigh, add at the rows."""

    def __init__(self, point: Point, weights: Weights) -> None:
        super().__init__()
        self.base = KeysAndValues(point.width, weights)
        self.router = Top1(weights.gates)
        newest = point.experts - 1
        self.experts = nn.ModuleList(
            nn.ModuleList(Pair(adapter, index == newest) for adapter in pairs)
            for index, pairs in enumerate(weights.adapters)
        )

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        flat = hidden.flatten(0, 1)
        expert_ids, factors = self.router(flat)
        outs = self.base(flat)
        for index, pairs in enumerate(self.experts):
            (rows,) = torch.where(expert_ids == index)
            chosen, factor = flat[rows], (factors[rows] * SCALE).unsqueeze(-1)
            for out, pair in zip(outs, pairs, strict=True):
                out.index_add_(0, rows, (pair(chosen) * factor).to(out.dtype))
        return tuple(out.view_as(hidden) for out in outs)


class Stack(nn.Module):
    """The LoRA pairs of one projection, stacked as transformers' grouped experts are: up is A, down is B."""

    has_gate = has_bias = is_transposed = has_post_expert_norm = False
    _is_expert_parallel = False

    def __init__(self, adapters: list[Adapter]) -> None:
        super().__init__()
        self.num_experts = len(adapters)
        self.up_proj = nn.Parameter(torch.stack([adapter.down for adapter in adapters]))
        self.down_proj = nn.Parameter(torch.stack([adapter.up for adapter in adapters]))
        self.act_fn = nn.Identity()

    def forward(self, flat: Tensor, expert_ids: Tensor, factors: Tensor) -> Tensor:
        return grouped_mm_experts_forward(self, flat.to(self.up_proj.dtype), expert_ids, factors)


class GroupedRecipe(nn.Module):
    """The base, plus `transformers.integrations.moe.grouped_mm_experts_forward` with A and B as its experts.

    It sorts, multiplies by A and by B in groups, weighs at full width, undoes the sort; then the sum.
    """

    def __init__(self, point: Point, weights: Weights) -> None:
        super().__init__()
        self.base = KeysAndValues(point.width, weights)
        self.router = Top1(weights.gates)
        self.stacks = nn.ModuleList(
            Stack([pairs[projection] for pairs in weights.adapters]) for projection in range(2)
        )

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        flat = hidden.flatten(0, 1)
        expert_ids, factors = self.router(flat)
        picked = expert_ids.unsqueeze(-1), (factors * SCALE).unsqueeze(-1)
        outs = self.base(flat)
        return tuple(
            (out + stack(flat, *picked)).view_as(hidden) for out, stack in zip(outs, self.stacks, strict=True)
        )

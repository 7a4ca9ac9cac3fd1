"""Random routed projections, and what the products of them must be, by plain loops in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

LAYOUTS = ("contiguous", "every second row", "columns apart", "slice of a batch")
ROUTINGS = ("random", "all to one", "half unrouted", "nobody")


@dataclass(frozen=True)
class Problem:
    """One decision, tokens of width I, and experts: A of shape [rank, I], B of shape [O, rank]."""

    ids: Tensor  # [items, slots]
    weights: Tensor  # likewise
    tokens_per_item: int
    hidden: Tensor
    downs: list[Tensor]
    ups: list[Tensor]

    @property
    def experts(self) -> int:
        return len(self.downs)

    @property
    def per_token(self) -> Tensor:
        return self.ids.repeat_interleave(self.tokens_per_item, 0)

    @property
    def transposed_ups(self) -> list[Tensor]:
        return [up.mT for up in self.ups]

    def also(self, seed: int) -> list[Tensor]:
        """Make a second stack of A, of the same ranks."""
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(down.shape, generator=generator).to(down.dtype) for down in self.downs]


def decision(routing: str, items: int, slots: int, experts: int, generator: torch.Generator) -> Tensor:
    """Choose distinct experts for every item, -1 for none."""
    if routing == "nobody":
        return torch.full((items, slots), -1)
    ids = torch.rand(items, experts, generator=generator).argsort(1)[:, :slots]
    if routing == "all to one":
        return torch.full((items, slots), -1).index_fill(1, torch.tensor([slots - 1]), experts - 1)
    if routing == "half unrouted":
        return torch.where(torch.rand(items, slots, generator=generator) < 0.5, -1, ids)
    return ids


def laid_out(hidden: Tensor, layout: str) -> Tensor:
    """Give the same numbers with other strides."""
    tokens = len(hidden)
    if layout == "every second row":
        return hidden.repeat_interleave(2, 0)[::2]
    if layout == "columns apart":
        return hidden.mT.contiguous().mT
    if layout == "slice of a batch":
        return torch.cat([hidden.new_zeros(tokens, 3), hidden], 1)[:, 3:]
    return hidden


def draw(
    items: int = 9,
    slots: int = 1,
    ranks: tuple[int, ...] = (4, 4, 4),
    wide: int = 12,
    out: int = 10,
    tokens_per_item: int = 1,
    routing: str = "random",
    layout: str = "contiguous",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Problem:
    """Make a problem."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return Problem(
        ids=decision(routing, items, slots, len(ranks), generator),
        weights=torch.rand(items, slots, generator=generator).to(dtype),
        tokens_per_item=tokens_per_item,
        hidden=laid_out(normal(items * tokens_per_item, wide), layout),
        downs=[normal(rank, wide) for rank in ranks],
        ups=[normal(out, rank) for rank in ranks],
    )


@st.composite
def problems(give: st.DrawFn) -> Problem:
    """Draw sizes from nothing upwards, none of them a friendly number on purpose."""
    experts = give(st.integers(1, 5))
    rank = st.integers(1, 19)
    equal = give(st.booleans())
    one = give(rank)
    tokens_per_item = give(st.sampled_from([1, 1, 1, 3, 35]))
    return draw(
        items=give(st.integers(0, 40 if tokens_per_item == 1 else 3)),
        slots=give(st.integers(1, min(3, experts))),
        ranks=tuple(one if equal else give(rank) for _ in range(experts)),
        wide=give(st.integers(1, 37)),
        out=give(st.integers(1, 37)),
        tokens_per_item=tokens_per_item,
        routing=give(st.sampled_from(ROUTINGS)),
        layout=give(st.sampled_from(LAYOUTS)),
        seed=give(st.integers(0, 99)),
    )


def chosen(problem: Problem) -> list[tuple[int, int, int]]:
    """List every routed choice: its place among all choices, its token, its expert."""
    slots = problem.ids.shape[1]
    table = problem.per_token.tolist()
    return [
        (token * slots + slot, token, expert)
        for token, row in enumerate(table)
        for slot, expert in enumerate(row)
        if expert >= 0
    ]


def shrunk(problem: Problem, matrices: list[Tensor]) -> Tensor:
    """Give token . matrix^T of every choice, zeros elsewhere."""
    low = torch.zeros(problem.per_token.numel(), max(len(m) for m in matrices), dtype=torch.float64)
    for choice, token, expert in chosen(problem):
        low[choice, : len(matrices[expert])] = matrices[expert].double() @ problem.hidden[token].double()
    return low


def expanded(problem: Problem, lows: list[Tensor], stacks: list[list[Tensor]]) -> Tensor:
    """Give the sum over lows and slots of low . matrix."""
    out = torch.zeros(len(problem.per_token), stacks[0][0].shape[1], dtype=torch.float64)
    for low, matrices in zip(lows, stacks, strict=True):
        for choice, token, expert in chosen(problem):
            own = low[choice, : len(matrices[expert])].double()
            out[token] += own @ matrices[expert].double()
    return out


def with_broken_expert(problem: Problem, expert: int) -> Problem:
    """Fill one expert with NaN."""

    def broken(matrices: list[Tensor]) -> list[Tensor]:
        return [torch.full_like(m, float("nan")) if e == expert else m for e, m in enumerate(matrices)]

    return replace(problem, downs=broken(problem.downs), ups=broken(problem.ups))

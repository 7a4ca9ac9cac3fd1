"""Random problems for the kernels, and every way of computing them that a CPU has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from prw.kernels import Case, DispatchPlan, choose, expand, grouped, make_plan, reference, shrink
from prw.precision import experts_dtype

WAYS = ("dense", "grouped", "sorted")
"""`sorted` is how the kernel `grouped` computes on CUDA; torch's grouped_mm has a slow way on a CPU too."""


class Projection(NamedTuple):
    """A projection of the input: A and B of every expert, and the base, which may be missing."""

    downs: Sequence[Tensor]
    ups: Sequence[Tensor]
    scale: float
    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass
class Problem:
    """An input, what projects it, and a decision about its items."""

    hidden: Tensor
    projections: list[Projection]
    ids: Tensor
    weights: Tensor
    tokens: int = 1
    seeds: list[Tensor] = field(default_factory=list)

    def leaves(self) -> list[Tensor]:
        """All that a gradient is wanted of."""
        found = [self.hidden, self.weights]
        for part in self.projections:
            base = [tensor for tensor in (part.weight, part.bias) if tensor is not None]
            found += [*part.downs, *part.ups, *base]
        return [tensor for tensor in found if tensor.requires_grad]

    def to(self, dtype: torch.dtype, experts: torch.dtype | None = None) -> Problem:
        """The same numbers, rounded to another dtype."""

        def cast(tensor, dtype=dtype):
            return None if tensor is None else tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)

        projections = [
            Projection(
                [cast(down, experts or dtype) for down in part.downs],
                [cast(up, experts or dtype) for up in part.ups],
                part.scale,
                cast(part.weight),
                cast(part.bias),
            )
            for part in self.projections
        ]
        weights = cast(self.weights, torch.float64 if dtype == torch.float64 else torch.float32)
        return replace(self, hidden=cast(self.hidden), projections=projections, weights=weights)

    def absolute(self) -> Problem:
        """The same without signs, so that all that is added up grows: the scale of rounding errors."""

        def of(tensor):
            return None if tensor is None else tensor.detach().abs().requires_grad_(tensor.requires_grad)

        projections = [
            Projection(
                [*map(of, part.downs)], [*map(of, part.ups)], part.scale, of(part.weight), of(part.bias)
            )
            for part in self.projections
        ]
        seeds = [seed.abs() for seed in self.seeds]
        weights = of(self.weights)
        return replace(self, hidden=of(self.hidden), projections=projections, weights=weights, seeds=seeds)


def problem(
    seed: int,
    items: int = 6,
    tokens: int = 1,
    ranks: Sequence[int] = (2, 3, 1),
    k: int = 1,
    wide: int = 5,
    outs: Sequence[int] = (4, 3),
    base: str = "bias",
    trains: int = -1,
    layout: str = "plain",
    skew: str = "mixed",
) -> Problem:
    """Draw a problem in float64.

    Args:
        seed: Seed of all numbers.
        items: How many decisions.
        tokens: Rows of each item.
        ranks: Rank of every expert.
        k: Choices per item; 0 stands for one without an axis of its own.
        wide: Width of the input.
        outs: Width of each projection's output.
        base: `none`, `weight` or `bias`.
        trains: Bits that say which experts train.
        layout: How the input lies in memory: `plain`, `sliced` (part of longer rows) or `transposed`.
        skew: How experts are chosen: `mixed`, `one` (all the same) or `nobody`.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    experts, rows, slots = len(ranks), items * tokens, min(max(k, 1), len(ranks))
    ids = torch.rand(items, experts, generator=generator).argsort(-1)[:, :slots]
    if skew == "one":
        ids = torch.arange(slots).expand(items, -1).clone()
    ids[torch.rand(items, slots, generator=generator) < (1.0 if skew == "nobody" else 0.2)] = -1
    weights = draw(items, slots).abs()
    flags = [bool(trains >> index & 1) for index in range(experts)]
    projections = []
    for out in outs:
        downs = [draw(rank, wide).requires_grad_(flag) for rank, flag in zip(ranks, flags, strict=True)]
        ups = [draw(out, rank).requires_grad_(flag) for rank, flag in zip(ranks, flags, strict=True)]
        weight = None if base == "none" else draw(out, wide).requires_grad_(trains < 0)
        bias = draw(out).requires_grad_(trains < 0) if base == "bias" else None
        projections.append(Projection(downs, ups, 1.5, weight, bias))
    hidden = draw(rows, wide)
    if layout == "sliced":
        hidden = draw(rows + 3, wide + 2)[2 : 2 + rows, 1 : 1 + wide]
    elif layout == "transposed":
        hidden = draw(wide, rows).T
    if k == 0:
        ids, weights = ids[:, 0], weights[:, 0]
    made = Problem(hidden.requires_grad_(), projections, ids, weights.requires_grad_(), tokens)
    made.seeds = [draw(rows, out) for out in outs]
    return made


def outputs(given: Problem, way: str) -> list[Tensor]:
    """Compute a problem in one of the ways, or by the reference: the base, experts added in place."""
    return [output(given, projection, way) for projection in given.projections]


def output(given: Problem, projection: Projection, way: str = "auto") -> Tensor:
    """Compute one projection of a problem."""
    downs, ups, scale, weight, bias = projection
    dtype = experts_dtype(downs[0], given.hidden)
    ids, gates = (x if x.dim() == 2 else x.unsqueeze(-1) for x in (given.ids, given.weights))
    rank = max(len(down) for down in downs)
    case = Case(given.hidden.device, dtype, len(downs), rank, ids.shape[1], given.tokens)
    kernel = way if way == "sorted" else choose(case, way).name
    base = None if weight is None else F.linear(given.hidden, weight, bias)
    if kernel == "reference":
        per_token = [x.repeat_interleave(given.tokens, 0) for x in (ids, gates)]
        delta = reference(given.hidden, downs, ups, *per_token, scale)
        return delta if base is None else (base + delta).to(base.dtype)
    if kernel == "sorted":
        plan = DispatchPlan(grouped, grouped.plan(ids, len(downs), given.tokens))
    else:
        plan = make_plan(kernel, ids, len(downs), given.tokens)
    (low,) = shrink(given.hidden, [downs], plan, given.hidden.detach().to(dtype))
    total = low.new_zeros(len(given.hidden), ups[0].shape[0]) if base is None else base
    return expand(total, low, gates, ups, scale, plan)


def outputs_and_gradients(given: Problem, way: str) -> list[Tensor]:
    """Compute a problem and the gradients of everything in it that wants one."""
    found = outputs(given, way)
    seeds = [seed.to(output.dtype) for seed, output in zip(given.seeds, found, strict=True)]
    return [*found, *torch.autograd.grad(found, given.leaves(), seeds)]


def error(got: Tensor, truth: Tensor) -> float:
    """Distance over length."""
    got, truth = got.detach().double(), truth.detach().double()
    return float((got - truth).norm() / truth.norm().clamp(min=1e-300))


SHAPES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 999),
        "items": st.integers(0, 9),
        "tokens": st.integers(1, 3),
        "ranks": st.lists(st.integers(1, 5), min_size=1, max_size=6),
        "k": st.integers(0, 3),
        "wide": st.integers(1, 7),
        "outs": st.lists(st.integers(1, 5), min_size=1, max_size=3),
        "base": st.sampled_from(["none", "weight", "bias"]),
        "trains": st.integers(-1, 31),
        "layout": st.sampled_from(["plain", "sliced", "transposed"]),
        "skew": st.sampled_from(["mixed", "one", "nobody"]),
    }
)
ALIGNED = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 999),
        "items": st.integers(0, 12),
        "ranks": st.lists(st.sampled_from([4, 8, 12]), min_size=1, max_size=4),
        "k": st.integers(0, 3),
        "wide": st.sampled_from([4, 8, 16]),
        "outs": st.lists(st.sampled_from([4, 12]), min_size=1, max_size=2),
        "base": st.sampled_from(["none", "weight", "bias"]),
        "trains": st.integers(-1, 15),
        "layout": st.sampled_from(["plain", "sliced", "transposed"]),
        "skew": st.sampled_from(["mixed", "one", "nobody"]),
    }
)
"""Problems that grouped_mm takes: its float32 rows are multiples of 16 bytes."""

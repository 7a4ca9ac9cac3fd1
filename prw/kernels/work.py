"""One decision made ready for one backend: what its projections share, whatever they compute."""

# Shape suffixes: T tokens, N items, K choices per item, C choices in all, W wide, R rank.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

Columns = tuple[int, int, int, int]
"""Some columns of an output, seen as groups of equal width: groups, width, start and stop in each group."""

Matrices = Sequence[Tensor]
"""One matrix per expert, each of shape [rank, wide]: A as it is, B turned round; of any float dtype."""


class Plan(Protocol):
    """How a backend lines up the choices; one row in rank space for each."""

    def per_choice(self, values_NK: Tensor) -> Tensor:
        """Give each choice its item's value, to [choices]."""
        ...

    def per_item(self, values_C: Tensor) -> Tensor:
        """Add up the choices' values over the tokens of their item, to [items, choices per item]."""
        ...


class Backend(Protocol):
    """The routed products of one way of computing them; see `prw.kernels.segments` for each."""

    def plan(self, expert_ids_NK: Tensor, experts: int, tokens_per_item: int, fixed: bool) -> Any:
        """Line up the choices."""
        ...

    def shrink(self, plan: Any, wide_TW: Tensor, stacks: Sequence[Matrices]) -> list[Tensor]:
        """Go into rank space."""
        ...

    def expand(
        self, plan: Any, lows: Sequence[Tensor], stacks: Sequence[Matrices], bias: Tensor | None, like: Tensor
    ) -> Tensor:
        """Come out of rank space, into a new output."""
        ...

    def add_to(self, plan: Any, low_CR: Tensor, matrices: Matrices, target: Tensor) -> None:
        """Come out of rank space, onto an output."""
        ...

    def weight_gradient(self, plan: Any, low_CR: Tensor, wide_TW: Tensor, expert: int, rank: int) -> Tensor:
        """Add up outer products."""
        ...


@dataclass(frozen=True, eq=False)
class Work:
    """A backend with its plan of one decision.

    Attributes:
        backend: The module that computes.
        plan: How it lines up the choices.
    """

    backend: Backend
    plan: Any

    def per_choice(self, values_NK: Tensor) -> Tensor:
        """Give each choice its item's value, to [choices]."""
        values: Tensor = self.plan.per_choice(values_NK)
        return values

    def per_item(self, values_C: Tensor) -> Tensor:
        """Add up the choices' values over the tokens of their item, to [items, choices per item]."""
        values: Tensor = self.plan.per_item(values_C)
        return values

    def shrink(self, wide_TW: Tensor, stacks: Sequence[Matrices]) -> list[Tensor]:
        """Go into rank space: one [choices, rank] per stack."""
        return self.backend.shrink(self.plan, wide_TW, stacks)

    def expand(
        self, lows: Sequence[Tensor], stacks: Sequence[Matrices], bias: Tensor | None, like: Tensor
    ) -> Tensor:
        """Come out of rank space, into a new [tokens, wide]."""
        return self.backend.expand(self.plan, lows, stacks, bias, like)

    def add_to(self, low_CR: Tensor, matrices: Matrices, target: Tensor) -> None:
        """Come out of rank space, onto an output of shape [tokens, ...]."""
        self.backend.add_to(self.plan, low_CR, matrices, target)

    def weight_gradient(self, low_CR: Tensor, wide_TW: Tensor, expert: int, rank: int) -> Tensor:
        """Add up one expert's outer products, to [rank, wide]."""
        return self.backend.weight_gradient(self.plan, low_CR, wide_TW, expert, rank)


def stacks(weights: Sequence[Tensor], experts: int) -> list[Sequence[Tensor]]:
    """Cut a flat list into lists of one matrix per expert."""
    return [weights[start : start + experts] for start in range(0, len(weights), experts)]


def turned(ups_OR: Sequence[Tensor]) -> list[Tensor]:
    """Turn every B round, to views of shape [rank, d_out]."""
    return [up_OR.mT for up_OR in ups_OR]


def part_of(output: Tensor, columns: Columns | None) -> Tensor:
    """View some columns of an output of shape [tokens, d_out], as [tokens, groups, width] if not all."""
    if columns is None:
        return output
    groups, width, start, stop = columns
    return output.view(output.shape[0], groups, width)[..., start:stop]

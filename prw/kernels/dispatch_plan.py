"""The dispatch plan: which rows go to which expert, made ready for one backend and shared by all projections.

A backend is a module with five functions: `plan` arranges the choices, `shrink` and `expand` go into rank
space and out of it, `add_to` does the latter in place, and `weight_gradient` sums outer products.
"""

# Shape suffixes: T tokens, N items, K choices per item, C choices in all (T * K), W wide (features in or
# out), R rank. A token's item is a token or a whole sample.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from prw.errors import ConfigError
from prw.kernels import cpu, dense, grouped

Matrices = Sequence[Tensor]
"""One matrix per expert, each of shape [rank, wide]: A, or B transposed; ranks may differ."""


class Backend(Protocol):
    """The routed products of one way of computing them; `prw.kernels.cpu` documents each."""

    def plan(self, expert_ids_NK: Tensor, experts: int, tokens_per_item: int, fixed: bool) -> Any:
        """Arrange the choices."""
        ...

    def shrink(self, plan: Any, wide_TW: Tensor, stacks: Sequence[Matrices]) -> list[Tensor]:
        """Multiply with A: [tokens, wide] -> one [choices, rank] per stack."""
        ...

    def expand(self, plan: Any, lows: Sequence[Tensor], stacks: Sequence[Matrices]) -> Tensor:
        """Multiply with B: one [choices, rank] per stack -> a new [tokens, wide], their sum."""
        ...

    def add_to(self, plan: Any, low_CR: Tensor, matrices: Matrices, target: Tensor) -> None:
        """Multiply with B, and add to an output in place."""
        ...

    def weight_gradient(self, plan: Any, low_CR: Tensor, wide_TW: Tensor, expert: int, rank: int) -> Tensor:
        """Sum the outer products of one expert's rows -> [rank, wide]."""
        ...


@dataclass(frozen=True, eq=False)
class DispatchPlan:
    """A backend with the choices of one decision, arranged for it.

    Attributes:
        backend: The module that computes.
        plan: The backend's own plan.
    """

    backend: Backend
    plan: Any

    def per_choice(self, values_NK: Tensor) -> Tensor:
        """Repeat the items' values for their choices: [items, choices per item] -> [choices]."""
        values_C: Tensor = self.plan.per_choice(values_NK)
        return values_C

    def per_item(self, values_C: Tensor) -> Tensor:
        """Sum the choices' values over the tokens of their item: [choices] -> [items, choices per item]."""
        values_NK: Tensor = self.plan.per_item(values_C)
        return values_NK

    def shrink(self, wide_TW: Tensor, stacks: Sequence[Matrices]) -> list[Tensor]:
        """Multiply with A: [tokens, wide] -> one [choices, rank] per stack."""
        return self.backend.shrink(self.plan, wide_TW, stacks)

    def expand(self, lows: Sequence[Tensor], stacks: Sequence[Matrices]) -> Tensor:
        """Multiply with B: one [choices, rank] per stack -> a new [tokens, wide], their sum."""
        return self.backend.expand(self.plan, lows, stacks)

    def add_to(self, low_CR: Tensor, matrices: Matrices, target: Tensor) -> None:
        """Multiply with B, and add to an output of shape [tokens, ...] in place."""
        self.backend.add_to(self.plan, low_CR, matrices, target)

    def weight_gradient(self, low_CR: Tensor, wide_TW: Tensor, expert: int, rank: int) -> Tensor:
        """Sum one expert's outer products: [choices, rank] x [tokens, wide] -> [rank, wide]."""
        return self.backend.weight_gradient(self.plan, low_CR, wide_TW, expert, rank)


def make_plan(
    kernel: str, expert_ids_NK: Tensor, experts: int, tokens_per_item: int = 1, fixed: bool = True
) -> DispatchPlan:
    """Arrange the choices of a decision for a kernel.

    Args:
        kernel: Name of a kernel that has a backend.
        expert_ids_NK: Chosen experts, int64 of shape [items, choices]; -1 is none.
        experts: How many there are.
        tokens_per_item: How many consecutive rows of the input an item stands for.
        fixed: Whether torch counts changes of frozen weights, so that copies of them can be cached.
    """
    backend = backend_of(kernel, expert_ids_NK.device)
    return DispatchPlan(backend, backend.plan(expert_ids_NK, experts, tokens_per_item, fixed))


def backend_of(name: str, device: torch.device) -> Backend:
    """Return the module that computes for a kernel's name.

    Triton's is imported here, when it is chosen: it is an optional dependency.

    Raises:
        ConfigError: if the kernel has no backend, as `reference`.
    """
    if name == "dense":
        return cast(Backend, dense)
    if name == "grouped":
        return cast(Backend, cpu if device.type == "cpu" else grouped)
    if name == "triton":
        return cast(Backend, import_module("prw.kernels.triton"))
    raise ConfigError(f"the kernel {name!r} has no backend; backends are dense, grouped and triton.")

"""One input on its way through the projections of a site: the decision, and what they share of the work."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from prw.kernels import Choice, Work
from prw.routing import RoutingDecision
from prw.routing.scores import transformed


class Reading(NamedTuple):
    """How a projection's experts read the input.

    Attributes:
        work: The decision, made ready for a kernel; None where the kernel is the reference.
        lows: The input in rank space, one of shape [choices, rank] for each part of the projection.
    """

    work: Work | None
    lows: tuple[Tensor, ...]


class Turn:
    """A decision, and readings that wait for the projections that have not been called yet.

    Attributes:
        decision: The site's decision for the input.
        choice: The kernel, once a projection has chosen it.
        waiting: Readings that the first projection made for the others.
    """

    def __init__(self, decision: RoutingDecision) -> None:
        """Keep a decision; nothing is read yet."""
        self.decision = decision
        self.choice: Choice | None = None
        self.waiting: dict[nn.Module, Reading] = {}

    def tokens_per_item(self, rows: int) -> int:
        """Count the rows of the input that each item stands for."""
        batch, items = self.decision.expert_ids.shape[:2]
        return rows // max(batch * items, 1)

    def items_first(self, of_items: Tensor) -> Tensor:
        """View what belongs to items as [items, choices]."""
        return of_items.flatten(0, 1) if of_items.dim() == 3 else of_items.reshape(-1, 1)


def traced() -> bool:
    """Tell whether the forward is being turned into a graph, or a transform of torch runs it.

    Nothing may then depend on the numbers: under torch.jit.trace, make_fx, fake tensors, torch.func, and
    forward-mode gradients, which the kernels do not have.
    """
    return torch.compiler.is_compiling() or transformed()


def graphed() -> bool:
    """Tell whether the forward is being compiled into a graph that may have operators of our own."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def per_token(of_items: Tensor, rows: int) -> Tensor:
    """Repeat what belongs to items so that there is one per row.

    Args:
        of_items: Of shape [batch, items], or [batch, items, k].
        rows: How many rows there are in the batch.

    Returns:
        Of shape [rows], or [rows, k].
    """
    batch, items, *several = of_items.shape
    repeats = rows // max(batch * items, 1)
    return of_items.unsqueeze(2).expand(batch, items, repeats, *several).reshape(rows, *several)

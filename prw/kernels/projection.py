"""The routed projection as a function: a site's projections, each with its base and the experts' part."""

# Shape suffixes: T tokens, N items, K choices, I in features, O out features, R rank.

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from prw.kernels.autograd import Expand, ExpandThenBase, Shrink
from prw.kernels.reference import reference
from prw.kernels.select import Case, backend_of, choose
from prw.kernels.work import Columns, Work
from prw.precision import experts_dtype


class Projection(NamedTuple):
    """One of the projections of a site, with the experts that its items choose from.

    Attributes:
        downs: A of every expert, each of shape [rank, d_in]; ranks may differ.
        ups: B of every expert, each of shape [d_out, rank].
        scale: LoRA scale.
        weight: The base's weight, of shape [d_out, d_in]; None means that there is no base.
        bias: The base's bias, of shape [d_out].
    """

    downs: Sequence[Tensor]
    ups: Sequence[Tensor]
    scale: float
    weight: Tensor | None = None
    bias: Tensor | None = None


def line_up(
    kernel: str, expert_ids: Tensor, experts: int, tokens_per_item: int = 1, fixed: bool = True
) -> Work:
    """Make a decision ready for a kernel.

    Args:
        kernel: Name of a kernel that has a backend.
        expert_ids: Chosen experts, int64 of shape [items] or [items, choices]; -1 is none.
        experts: How many there are.
        tokens_per_item: How many consecutive rows of the input an item stands for.
        fixed: Whether torch counts changes of frozen weights, so that stacked copies of them can be kept.
    """
    backend = backend_of(kernel, expert_ids.device)
    ids = expert_ids if expert_ids.dim() == 2 else expert_ids.unsqueeze(-1)
    return Work(backend, backend.plan(ids, experts, tokens_per_item, fixed))


def into_rank_space(
    hidden_TI: Tensor, stacks_RI: Sequence[Sequence[Tensor]], work: Work
) -> tuple[Tensor, ...]:
    """Multiply every row with A of its experts, for all projections that read the same input.

    Args:
        hidden_TI: Inputs, of shape [tokens, d_in].
        stacks_RI: For each projection A of every expert, each of shape [rank, d_in].
        work: The decision.

    Returns:
        For each projection, of shape [choices, largest rank], in the dtype of the experts' arithmetic.
    """
    downs_RI = [down_RI for stack_RI in stacks_RI for down_RI in stack_RI]
    lows: tuple[Tensor, ...] = Shrink.apply(  # type: ignore[no-untyped-call]
        work, experts_dtype(downs_RI[0], hidden_TI), len(stacks_RI[0]), hidden_TI, *downs_RI
    )
    return lows


def onto(
    output: Tensor,
    low_CR: Tensor,
    weights: Tensor,
    ups_OR: Sequence[Tensor],
    scale: float,
    work: Work,
    columns: Columns | None = None,
) -> Tensor:
    """Add weight * scale * B_e h to an output, in place.

    Args:
        output: Of shape [..., d_out], contiguous; nothing that autograd has saved.
        low_CR: What `into_rank_space` gave.
        weights: Weight of each choice, of shape [items] or [items, choices].
        ups_OR: B of every expert, each of shape [rows that are added to, rank].
        scale: LoRA scale.
        work: The decision.
        columns: The columns of the output that are added to, in the order of the rows of B; None means all.
    """
    weights_NK = weights if weights.dim() == 2 else weights.unsqueeze(-1)
    added: Tensor = Expand.apply(  # type: ignore[no-untyped-call]
        work, scale, columns, output, low_CR, weights_NK, *ups_OR
    )
    return added


def routed_projections(
    hidden_TI: Tensor,
    projections: Sequence[Projection],
    expert_ids: Tensor,
    weights: Tensor,
    *,
    kernel: str = "auto",
    tokens_per_item: int = 1,
) -> tuple[Tensor, ...]:
    """Project every row: the base, and weight * scale * B_e A_e h of the expert, or experts, e of its item.

    Args:
        hidden_TI: Inputs, of shape [tokens, d_in].
        projections: What reads them; all with the same number of experts.
        expert_ids: Chosen experts, int64 of shape [items] or [items, choices], no expert twice for one item;
            -1 is none. Consecutive rows share an item.
        weights: Weight of each choice, of the same shape.
        kernel: Which kernel computes it; see `choose`.
        tokens_per_item: How many rows an item stands for: more than one where whole samples are routed.

    Returns:
        For each projection, of shape [tokens, d_out].

    Raises:
        ConfigError: if there is no such kernel.
    """
    first = projections[0]
    rank = max(down_RI.shape[0] for down_RI in first.downs)
    top_k = 1 if expert_ids.dim() == 1 else expert_ids.shape[1]
    dtype = experts_dtype(first.downs[0], hidden_TI)
    case = Case(hidden_TI.device, dtype, len(first.downs), rank, top_k, tokens_per_item)
    name = choose(case, kernel).name
    if name == "reference":
        ids, factors = (
            of_items.repeat_interleave(tokens_per_item, 0) if tokens_per_item > 1 else of_items
            for of_items in (expert_ids, weights)
        )
        return tuple(by_reference(hidden_TI, projection, ids, factors) for projection in projections)
    work = line_up(name, expert_ids, len(first.downs), tokens_per_item)
    lows = into_rank_space(hidden_TI, [projection.downs for projection in projections], work)
    weights_NK = weights if weights.dim() == 2 else weights.unsqueeze(-1)
    return tuple(
        with_base(hidden_TI, projection, low_CR, weights_NK, work)
        for projection, low_CR in zip(projections, lows, strict=True)
    )


def with_base(
    hidden_TI: Tensor, projection: Projection, low_CR: Tensor, weights_NK: Tensor, work: Work
) -> Tensor:
    """Come out of rank space, and accumulate the base on top if there is one (LoRA-first).

    Where the base has another dtype than the experts, as under autocast, it comes first.
    """
    if projection.weight is None or not hidden_TI.dtype == projection.weight.dtype == low_CR.dtype:
        if projection.weight is None:
            output = low_CR.new_zeros(hidden_TI.shape[0], projection.ups[0].shape[0])
        else:
            output = F.linear(hidden_TI, projection.weight, projection.bias)
        return onto(output, low_CR, weights_NK, projection.ups, projection.scale, work)
    written: Tensor = ExpandThenBase.apply(  # type: ignore[no-untyped-call]
        work,
        projection.scale,
        hidden_TI,
        projection.weight,
        projection.bias,
        low_CR,
        weights_NK,
        *projection.ups,
    )
    return written


def by_reference(hidden_TI: Tensor, projection: Projection, ids: Tensor, weights: Tensor) -> Tensor:
    """Compute a projection by its definition."""
    added = reference(hidden_TI, projection.downs, projection.ups, ids, weights, projection.scale)
    if projection.weight is None:
        return added
    base = F.linear(hidden_TI, projection.weight, projection.bias)
    return (base + added).to(base.dtype)

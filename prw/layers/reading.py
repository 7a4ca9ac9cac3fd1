"""Into rank space: one projection reads an input for all projections of its site."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from prw.kernels import Case, Choice, choose, into_rank_space, line_up
from prw.layers.experts import DOWN, UP, is_split, weights_of
from prw.layers.rows import Part
from prw.layers.site import Site
from prw.layers.turn import Reading, Turn
from prw.precision import experts_dtype

Stack = Sequence[Tensor]


def downs_of(layer: nn.Module, part: Part, adapter: str, experts: int) -> list[Tensor]:
    """Read A of the oldest experts, as many as are in use."""
    return weights_of(layer, DOWN + part.letter, adapter, experts)


def ups_of(layer: nn.Module, part: Part, adapter: str, experts: int) -> list[Tensor]:
    """Read B of the oldest experts, as many as are in use."""
    return weights_of(layer, UP + part.letter, adapter, experts)


def chosen(turn: Turn, wanted: str, downs: Stack, rows: Tensor) -> Choice:
    """Choose the kernel for a turn, once for all its projections, by the rows that they read."""
    if turn.choice is None:
        dtype, tokens = experts_dtype(downs[0], rows), turn.tokens_per_item(rows.shape[0])
        case = case_of(downs, dtype, turn.decision.choices.shape[-1], tokens)
        turn.choice = choose(case, wanted)
    return turn.choice


def case_of(downs: Stack, dtype: torch.dtype, top_k: int, tokens_per_item: int) -> Case:
    """Describe what a kernel is chosen for, with the dtype that it computes in."""
    first = downs[0]
    # On a host the ranks do not count; looking at all of them would cost more than choosing.
    rank = first.shape[0] if first.is_cpu else max(down.shape[0] for down in downs)
    return Case(first.device, dtype, len(downs), rank, top_k, tokens_per_item, wide=first.shape[1])


def explained(site: Site) -> str:
    """Say which kernel computes a site's experts as things are, and why.

    Autocast, and whether gradients are wanted, may change it.
    """
    pool, layer = site.pool, site.router
    if not pool.experts:
        return f"{pool.kernel}, once there is an expert"
    part: Part = layer.parts_of(site.adapter)[0]  # type: ignore[operator]
    downs = downs_of(layer, part, site.adapter, len(pool.experts))
    several = (
        1 if pool.settings.granularity == "token" else 2
    )  # all that counts is whether it is more than one
    # The base reads inputs of its own dtype; a quantised one says nothing about them.
    floating = (one for one in layer.base_layer.parameters() if one.is_floating_point())  # type: ignore[union-attr]
    dtype = experts_dtype(downs[0], next(floating, downs[0]))
    case = case_of(downs, dtype, min(pool.settings.top_k, len(downs)), several)
    choice = choose(case, pool.kernel)
    why = choice.why if pool.kernel == "auto" else f"{choice.why} by {pool.kernel_from}"
    return f"{choice.name} ({why})"


def read(
    turn: Turn,
    hidden: Tensor,
    asker: nn.Module,
    mine: Sequence[Stack],
    others: Sequence[nn.Module],
    adapter: str,
    kernel: str,
) -> Reading:
    """Read an input for a projection, and for others that are to get the same one.

    Args:
        turn: The turn that the input is in.
        hidden: The input, of shape [rows, d_in].
        asker: The projection that asks.
        mine: A of its experts, one list for each of its parts.
        others: The site's other projections, if they are to be read for.
        adapter: Adapter name.
        kernel: Name of a kernel that has a backend.

    Returns:
        The asker's reading; the others' wait in the turn.
    """
    experts = turn.decision.num_experts
    stacks = {asker: mine}
    for other in others:
        theirs = stacks_of(other, adapter, experts) if ready(other, adapter) else []
        if theirs and all(alike(down, mine[0][0]) for stack in theirs for down in (stack[0], stack[-1])):
            stacks[other] = theirs
    fixed = not any(is_split(member, adapter) for member in stacks)
    ids, tokens = turn.items_first(turn.decision.expert_ids), turn.tokens_per_item(hidden.shape[0])
    work = line_up(kernel, ids, experts, tokens, fixed)
    lows = into_rank_space(hidden, [stack for found in stacks.values() for stack in found], work)
    start = 0
    for member, found in stacks.items():
        turn.waiting[member] = Reading(work, lows[start : start + len(found)])
        start += len(found)
    return turn.waiting.pop(asker)


def stacks_of(layer: nn.Module, adapter: str, experts: int) -> Sequence[Stack]:
    """Read A of a projection's experts, one list for each of its parts."""
    parts: Sequence[Part] = layer.parts_of(adapter)  # type: ignore[operator]
    return [downs_of(layer, part, adapter, experts) for part in parts]


def ready(layer: nn.Module, adapter: str) -> bool:
    """Tell whether a projection's weights can be read before it is called.

    A module that FSDP2 or a hook fetches for its own forward has its weights only then.
    """
    return adapter in layer.sites and not isinstance(layer, FSDPModule) and not layer._forward_pre_hooks  # type: ignore[operator]


def alike(down: Tensor, mine: Tensor) -> bool:
    """Tell whether another projection's experts can be multiplied with an input beside mine."""
    same_kind = down.device == mine.device and down.dtype == mine.dtype
    return same_kind and down.shape[1] == mine.shape[1] and not isinstance(down, DTensor)

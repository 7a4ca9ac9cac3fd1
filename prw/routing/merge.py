"""Lays recorded decisions end to end, so that statistics and losses reduce all sites at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prw.errors import ConfigError, RoutingError
from prw.routing.decision import RoutingDecision


def merged(
    decisions: Sequence[RoutingDecision], mask: Tensor | None = None, by_sample: bool = False
) -> RoutingDecision:
    """Lay decisions over one number of experts end to end.

    Args:
        decisions: At least one; `by_sample` asks for one batch size. They may lie on several devices, as
            those of nn.DataParallel do; the first one's is taken.
        mask: Which tokens count, bool of shape [batch, tokens]; None means all that are routed.
        by_sample: Whether samples stay apart.

    Returns:
        One decision of shape [1, items], or [batch, items] by sample, in the order of the decisions, with the
        axes after them kept; an item that is masked out has the expert -1, as one that is not routed.

    Raises:
        ConfigError: if the mask is not of bools.
        RoutingError: if the mask does not fit a decision.
    """
    device = decisions[0].expert_ids.device

    def laid(parts: Sequence[Tensor]) -> Tensor:
        if by_sample:
            return torch.cat([part.to(device) for part in parts], dim=1)
        return torch.cat([part.flatten(0, 1).to(device) for part in parts]).unsqueeze(0)

    whole = RoutingDecision(*(laid(parts) for parts in zip(*decisions, strict=True)))
    if mask is None:
        return whole
    mask = mask.to(device) if isinstance(mask, Tensor) else mask
    counted = laid([item_mask(mask, decision.choices[..., 0]) for decision in decisions])
    if whole.expert_ids.dim() == 3:
        counted = counted.unsqueeze(-1)
    return whole._replace(
        expert_ids=torch.where(counted, whole.expert_ids, torch.full_like(whole.expert_ids, -1))
    )


def owners(decisions: Sequence[RoutingDecision], homes: Sequence[int], device: torch.device) -> Tensor:
    """Number the owner of each item of `merged` decisions, int64 of shape [items].

    The numbers are filled in on the device: a list of the host would be copied, and waited for.

    Args:
        decisions: The decisions.
        homes: The number of each one's owner, for instance its site; those of one owner stand together.
        device: Where they are wanted.
    """
    counts: dict[int, int] = {}
    for decision, home in zip(decisions, homes, strict=True):
        counts[home] = counts.get(home, 0) + decision.logits.shape[:-1].numel()
    first, length = homes[0], counts[homes[0]]
    if list(counts) == list(range(first, first + len(counts))) and set(counts.values()) == {length}:
        return torch.arange(first, first + len(counts), device=device).repeat_interleave(length)
    return torch.cat([torch.full((count,), home, device=device) for home, count in counts.items()])


def item_mask(mask: Tensor, expert_ids: Tensor) -> Tensor:
    """Turn a mask of tokens into one of a decision's items.

    Args:
        mask: Bool of shape [batch, tokens].
        expert_ids: Of shape [batch, items]. Where there is one item for several tokens, as with whole
            samples, it counts if any of its tokens does.

    Raises:
        ConfigError: if the mask is not of bools.
        RoutingError: if the shapes do not fit.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = getattr(mask, "dtype", type(mask).__name__)
        raise ConfigError(
            f"mask takes bools, True where a token counts; got {found}. From an attention mask of ones "
            "and zeros take attention_mask.bool()."
        )
    if mask.shape == expert_ids.shape:
        return mask
    if mask.dim() == 2 and (mask.shape[0], 1) == tuple(expert_ids.shape):
        return mask.any(dim=1, keepdim=True)
    raise RoutingError(
        f"the mask has shape {tuple(mask.shape)}, but a decision of shape {tuple(expert_ids.shape)} [batch, "
        "items] was recorded. It must cover the tokens that the sites see: record each forward by itself, "
        "and where sites see different tokens (cross-attention, cached generation) pass no mask and use "
        "`with weave.route_only(mask)` or prw.project instead."
    )


def by_size(decisions: Sequence[RoutingDecision]) -> dict[int, list[int]]:
    """Group decisions by the size of the pool they chose from: one group, unless `as_of` was open for some.

    Returns:
        Size to the places of its decisions.
    """
    places: dict[int, list[int]] = {}
    for place, decision in enumerate(decisions):
        places.setdefault(decision.num_experts, []).append(place)
    return places

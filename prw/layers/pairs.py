"""One expert at one projection as A and B of a plain LoRA: what export, measure and merge read."""

from __future__ import annotations

from torch import Tensor, nn

from prw.layers.experts import expert_names, weight_of


def pair_of(layer: nn.Module, adapter: str, index: int) -> tuple[Tensor, Tensor]:
    """Give an expert's A and B, without their graph.

    Args:
        layer: The projection.
        adapter: Adapter name.
        index: Position of the expert.

    Returns:
        Of shapes [rank, d_in] and [d_out, rank].
    """
    names = expert_names(index)
    return weight_of(layer, names.down, adapter).detach(), weight_of(layer, names.up, adapter).detach()

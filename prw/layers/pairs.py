"""One expert at one projection as A and B of a plain LoRA: what export, measure and merge read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prw.layers.experts import expert_names, weight_of
from prw.layers.projection import RoutedProjection


def pair_of(
    layer: RoutedProjection, adapter: str, index: int, read: Callable[[Tensor], Tensor] = Tensor.detach
) -> tuple[Tensor, Tensor]:
    """Give an expert's A and B, without their graph.

    Of a projection that holds keys and values, A has the A of both, one above the other, and B is zero in the
    rows of the queries: its rank is twice the expert's.

    Args:
        layer: The projection.
        adapter: Adapter name.
        index: Position of the expert.
        read: What is done with each weight first.

    Returns:
        Of shapes [rank, d_in] and [d_out, rank].
    """
    downs, ups = [], []
    for part in layer.parts_of(adapter):
        names = expert_names(index, part.letter)
        down, up = (read(weight_of(layer, name, adapter)) for name in (names.down, names.up))
        if part.rows is None:
            return down, up
        among_all = up.new_zeros(layer.out_features, up.shape[1])
        among_all[part.rows.indices()] = up
        downs.append(down)
        ups.append(among_all)
    return torch.cat(downs), torch.cat(ups, dim=1)

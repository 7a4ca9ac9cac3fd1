"""One expert at one projection as A and B of a plain LoRA."""

from __future__ import annotations

import torch
from torch import Tensor

from prw.layers.experts import expert_names, weight_of
from prw.layers.projection import RoutedProjection


def pair_of(layer: RoutedProjection, adapter: str, index: int) -> tuple[Tensor, Tensor]:
    """Give one expert at one projection as A and B of a plain LoRA.

    Of a projection that holds keys and values, A has the A of both, one above the other, and B is zero in the
    rows of the queries: its rank is twice the expert's.

    Args:
        layer: The projection.
        adapter: Adapter name.
        index: Position of the expert.

    Returns:
        Of shapes [rank, d_in] and [d_out, rank].
    """
    downs, ups = [], []
    for part in layer.parts_of(adapter):
        names = expert_names(index, part.letter)
        down, up = weight_of(layer, names.down, adapter), weight_of(layer, names.up, adapter)
        if part.rows is None:
            return down.detach(), up.detach()
        whole = up.new_zeros(layer.out_features, up.shape[1])
        whole[part.rows.indices()] = up.detach()
        downs.append(down.detach())
        ups.append(whole)
    return torch.cat(downs), torch.cat(ups, dim=1)

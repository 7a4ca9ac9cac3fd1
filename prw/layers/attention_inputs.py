"""Keys and values for torch's own attention, made by the very matrix products that torch would use."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def turned(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put tokens first; what was one tensor stays one, since torch projects it once."""
    turned_query = query.transpose(1, 0)
    turned_key = turned_query if key is query else key.transpose(1, 0)
    turned_value = turned_key if value is key else value.transpose(1, 0)
    return turned_query, turned_key, turned_value


def project_as_torch(
    base: Any, weight: Tensor | None, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Make keys and values by the very matrix products that torch makes them by, so that bits agree."""
    width, bias = base.embed_dim, base.in_proj_bias
    biases = (None, None, None) if bias is None else bias.chunk(3)
    if weight is None:
        return F.linear(batched(key), base.k_proj_weight, biases[1]), F.linear(
            batched(value), base.v_proj_weight, biases[2]
        )
    if key is value and query is key:
        packed = F.linear(batched(query), weight, bias)
        return packed[..., width : 2 * width], packed[..., 2 * width :]
    if key is value:
        packed = F.linear(batched(key), weight[width:], None if bias is None else bias[width:])
        return packed[..., :width], packed[..., width:]
    _, key_weight, value_weight = weight.chunk(3)
    return F.linear(batched(key), key_weight, biases[1]), F.linear(batched(value), value_weight, biases[2])


def batched(source: Tensor) -> Tensor:
    """View [tokens, d] as a batch of one, [tokens, 1, d]."""
    return source if source.dim() == 3 else source.unsqueeze(1)


def with_bias(base: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Append the learnt key and value that `add_bias_kv=True` asks for."""
    batch = keys.shape[1]
    keys = torch.cat([keys, base.bias_k.repeat(1, batch, 1)])
    return keys, torch.cat([values, base.bias_v.repeat(1, batch, 1)])


def longer(*masks: Tensor | None) -> tuple[Tensor | None, ...]:
    """Leave one more key open to every query in each of the masks."""
    return tuple(None if mask is None else F.pad(mask, (0, 1)) for mask in masks)


def by_head(source: Tensor, base: Any) -> Tensor:
    """Cut [tokens, batch, d] into heads: [batch * heads, tokens, d / heads]."""
    tokens, batch, _ = source.shape
    return source.contiguous().view(tokens, batch * base.num_heads, base.head_dim).transpose(0, 1)

"""Experts in `nn.MultiheadAttention`, whose projections are parameters that no submodule's forward sees."""

# Shape legend: T target tokens, S source tokens, B batch, D model width. Torch's own attention takes tokens
# first, [S, B, D]; inputs here are [B, S, D] with batch_first, else [S, B, D], or [S, D] without a batch.

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prw.errors import RoutingError
from prw.tuner.layer import PrwLinear

Output = tuple[Tensor, Tensor | None]


class UnfusedWeight(Tensor):
    """A weight that torch's fused inference calls do not take, as of any subclass of a tensor."""


class PrwAttention(PrwLinear):
    """An `nn.MultiheadAttention` with experts on its keys and values.

    While experts are in use, keys and values are made here, with the experts' part, and handed to torch's own
    attention as `static_k` and `static_v`. Without them the attention that was there is called as it was.

    `nn.TransformerEncoderLayer` and `nn.TransformerEncoder` have fused inference calls that read this
    module's weights and pass over its forward. They ask whether the widths of q, k and v are equal, and
    whether the weight is a plain tensor; while experts are in use, the answer to both is no.
    """

    def __getattr__(self, name: str) -> Any:
        """Show what the attention shows: hosts read its head count, its bias, its output projection."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    @property
    def in_proj_weight(self) -> Tensor | None:
        """The attention's weight; not a plain tensor while experts are in use."""
        base: Any = self.base_layer
        weight: Tensor | None = base.in_proj_weight
        self.note_weight_read()
        if weight is None or torch.compiler.is_compiling() or not self._acting():
            return weight
        return weight.as_subclass(UnfusedWeight)

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """Whether torch's fused calls may be taken: with equal widths, and no experts in use."""
        return bool(self.base_layer._qkv_same_embed_dim) and not self._acting()

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, routed: bool = True, **kwargs: Any
    ) -> Output:
        """Attend, with the experts' part added to keys and values.

        Args:
            query: As in `nn.MultiheadAttention`, like all that follows.
            key: What keys are made of.
            value: What values are made of.
            args: Masks and the rest.
            routed: Whether the experts act; if not, nothing is decided or recorded.
            kwargs: Masks and the rest.
        """
        adapters = self._acting() if routed else []
        if adapters:
            return self._attend(adapters, query, key, value, *args, **kwargs)
        output: Output = self.base_layer(query, key, value, *args, **kwargs)
        return output

    def _acting(self) -> list[str]:
        """List the adapters whose experts are in use now."""
        if self.disable_adapters:
            return []
        return [
            name for name in self.active_adapters if name in self.sites and self.sites[name].pool.size > 0
        ]

    def _attend(
        self,
        adapters: list[str],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Output:
        base: Any = self.base_layer
        refuse_nested(self.sites[adapters[0]].name, query, key, value)
        deltas = self._deltas(adapters, key, value)
        first = base.batch_first and query.dim() == 3
        if first:
            query, key, value = tokens_first(query, key, value)  # [B, S, D] -> [S, B, D]
        keys, values = self._projected(query, key, value, deltas)  # [S, B, D]
        if base.bias_k is not None:
            keys, values = with_bias(base, keys, values)  # [S + 1, B, D]
            attn_mask, key_padding_mask = longer(attn_mask, key_padding_mask)
            key = value = torch.cat([key, key[:1]])  # not read any more, but measured
        output, weights = F.multi_head_attention_forward(
            query,
            key,
            value,
            base.embed_dim,
            base.num_heads,
            base.in_proj_weight,
            base.in_proj_bias,
            None,
            None,
            base.add_zero_attn,
            base.dropout,
            base.out_proj.weight,
            base.out_proj.bias,
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            use_separate_proj_weight=not base._qkv_same_embed_dim,
            q_proj_weight=base.q_proj_weight,
            k_proj_weight=base.k_proj_weight,
            v_proj_weight=base.v_proj_weight,
            static_k=by_head(keys, base),
            static_v=by_head(values, base),
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return (output.transpose(1, 0) if first else output), weights  # [T, B, D] -> [B, T, D]

    def _deltas(self, adapters: list[str], key: Tensor, value: Tensor) -> dict[str, list[Tensor]]:
        """Compute what the experts add to keys ("k") and values ("v"), shaped as the inputs are."""
        deltas: dict[str, list[Tensor]] = {"k": [], "v": []}
        sources = [("kv", key)] if key is value else [("k", key), ("v", value)]
        for adapter in adapters:
            for letters, source in sources:
                if not set(letters) & set(self.slices_of(adapter)):
                    continue
                hidden = self._batch_first(source)
                strength, one_sample = self.strengths[adapter], hidden.dim() == 2
                found = self.expert_outputs(hidden, adapter, letters, strength, one_sample)
                for letter, delta in found.items():
                    deltas[letter].append(self._batch_first(delta))  # and back
        return deltas

    def _batch_first(self, source: Tensor) -> Tensor:
        """View an input as [batch, tokens, d], or [tokens, d]; the same again takes it back."""
        return source if self.base_layer.batch_first or source.dim() == 2 else source.transpose(0, 1)

    def _projected(
        self, query: Tensor, key: Tensor, value: Tensor, deltas: dict[str, list[Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Compute keys and values as torch does, [tokens, batch, d], and add the experts' part."""
        base: Any = self.base_layer
        made = dict(zip("kv", project_as_torch(base, query, key, value), strict=True))
        for letter, parts in deltas.items():
            for delta in parts:
                delta = delta.unsqueeze(1) if delta.dim() == 2 else delta  # [S, D] -> [S, 1, D]
                delta = delta.transpose(0, 1) if base.batch_first and query.dim() == 3 else delta
                made[letter] = made[letter] + delta.to(made[letter].dtype)
        return made["k"], made["v"]


def tokens_first(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put tokens first, [B, S, D] -> [S, B, D]; one tensor stays one, since torch projects it once."""
    turned_query = query.transpose(1, 0)
    turned_key = turned_query if key is query else key.transpose(1, 0)
    turned_value = turned_key if value is key else value.transpose(1, 0)
    return turned_query, turned_key, turned_value


def project_as_torch(base: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Compute keys and values by the same matrix products as torch, so that bits agree.

    Args:
        base: The attention.
        query: Of shape [tokens, batch, d] or [tokens, d].
        key: Likewise.
        value: Likewise.

    Returns:
        Keys and values of shape [tokens, batch, d].
    """
    width, weight, bias = base.embed_dim, base.in_proj_weight, base.in_proj_bias
    biases = (None, None, None) if bias is None else bias.chunk(3)
    if weight is None:
        return F.linear(batched(key), base.k_proj_weight, biases[1]), F.linear(
            batched(value), base.v_proj_weight, biases[2]
        )
    if key is value and query is key:
        packed = F.linear(batched(query), weight, bias)  # [S, B, D] -> [S, B, 3 D]
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
    """Append the learnt key and value that `add_bias_kv=True` asks for: [S, B, D] -> [S + 1, B, D]."""
    batch = keys.shape[1]
    keys = torch.cat([keys, base.bias_k.repeat(1, batch, 1)])
    return keys, torch.cat([values, base.bias_v.repeat(1, batch, 1)])


def longer(*masks: Tensor | None) -> tuple[Tensor | None, ...]:
    """Leave one more key open to every query in each of the masks."""
    return tuple(None if mask is None else F.pad(mask, (0, 1)) for mask in masks)


def by_head(source: Tensor, base: Any) -> Tensor:
    """Cut into heads: [tokens, batch, d] -> [batch * heads, tokens, d / heads]."""
    tokens, batch, _ = source.shape
    return source.contiguous().view(tokens, batch * base.num_heads, base.head_dim).transpose(0, 1)


def refuse_nested(site: str, *tensors: Tensor) -> None:
    """Refuse nested tensors, which only torch's fused calls can take.

    Raises:
        RoutingError: says how to switch them off.
    """
    if any(tensor.is_nested for tensor in tensors):
        raise RoutingError(
            f"site {site} got a nested tensor, which nn.TransformerEncoder makes of padded batches for its "
            "fused inference call; the experts need plain ones. Set encoder.use_nested_tensor = False."
        )

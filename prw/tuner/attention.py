"""Experts in `nn.MultiheadAttention`, whose projections are parameters that no submodule's forward sees."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prw.errors import RoutingError
from prw.layers import expert_names
from prw.layers.attention_inputs import by_head, longer, project_as_torch, turned, with_bias
from prw.tuner.layer import PrwLinear

Output = tuple[Tensor, Tensor | None]


class Guarded(Tensor):
    """A weight that torch's fused inference calls will not take, as it might do more than a plain one."""


class PrwAttention(PrwLinear):
    """An `nn.MultiheadAttention` with experts on its keys and values.

    Keys and values are made here, with the experts' part, and handed to torch's own attention as `static_k`
    and `static_v`. Where no expert has any effect (none in use, or all B are zero) the attention that was
    there is called as it was, so that it gives the same bits.

    `nn.TransformerEncoder` and `nn.TransformerEncoderLayer` have fused inference calls that read this
    module's weights and pass over its forward. They ask whether an argument is a plain tensor; while experts
    have an effect, `in_proj_weight` is none.
    """

    def __init__(self, base_layer: nn.Module, in_features: int, out_features: int) -> None:
        """Wrap an attention; it has no experts yet."""
        super().__init__(base_layer, in_features, out_features)
        self.kin: list[PrwAttention] = [self]
        self._trained = any(parameter.requires_grad for parameter in base_layer.parameters())
        self._seen_awake: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        """Show what the attention shows: hosts read its head count, its bias, its output projection."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    @property
    def in_proj_weight(self) -> Tensor | None:
        """The attention's weight; not plain while torch's fused calls would pass over the experts."""
        base: Any = self.base_layer
        weight: Tensor | None = base.in_proj_weight
        self.note_weight_read()
        if weight is None or torch.compiler.is_compiling() or self._may_be_fused():
            return weight
        return weight.as_subclass(Guarded)

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """Whether torch's fused calls may be taken; they need equal widths, and experts without effect."""
        return bool(self.base_layer._qkv_same_embed_dim) and self._may_be_fused()

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
        adapters, grad = self._acting() if routed else [], torch.is_grad_enabled()
        asleep = not self.training and not grad and not self._awake(adapters)
        if asleep and self._would_be_fused(query, key, value):
            self._decide_only(adapters, key, value)
        elif adapters or (self._trained and not self.training):
            return self._attend(adapters, query, key, value, *args, **kwargs)
        output: Output = self.base_layer(query, key, value, *args, **kwargs)
        return output

    def _acting(self) -> list[str]:
        """List the adapters whose experts are in use here and now."""
        if self.disable_adapters:
            return []
        return [
            name for name in self.active_adapters if name in self.sites and self.sites[name].pool.size > 0
        ]

    def _would_be_fused(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Tell whether torch's attention, asked without gradients, takes its fused call for these inputs."""
        base: Any = self.base_layer
        plain = base.bias_k is None and not base.add_zero_attn and base.in_proj_bias is not None
        one_input = query is key and key is value and query.dim() == 3
        return plain and one_input and base.batch_first and base.num_heads % 2 == 0

    def _may_be_fused(self) -> bool:
        """Tell whether a fused call would give what this module gives, and what the base gave before.

        Torch takes no fused call where a gradient is wanted of the weights; that they are frozen now must not
        change the bits. An encoder asks its first layer only, so every attention of the injection counts.
        """
        adapters = self._acting()
        if torch.is_grad_enabled() and (self._trained or adapters):
            return False
        recorded = any(self.sites[name].pool.recorder is not None for name in adapters)
        return not recorded and not any(other._awake(other._acting()) for other in self.kin)

    def _awake(self, adapters: list[str]) -> bool:
        """Tell whether any B in use is not zero; one that was not is not looked at again."""
        if torch.compiler.is_compiling():
            return True
        for adapter in adapters:
            for index in range(self.sites[adapter].pool.size):
                for part in self.parts_of(adapter):
                    up = getattr(self, expert_names(index, part.letter).up)[adapter]
                    if id(up) in self._seen_awake or up.weight.is_meta or bool(up.weight.any()):
                        self._seen_awake.add(id(up))
                        return True
        return False

    def _decide_only(self, adapters: list[str], key: Tensor, value: Tensor) -> None:
        """Make the decisions, for whoever records them."""
        for adapter in adapters:
            for source in [key] if key is value else [key, value]:
                self.sites[adapter].decide(self._tokens(source), self, source.dim() == 2)

    def _tokens(self, source: Tensor) -> Tensor:
        """View an input as [batch, tokens, d], or [tokens, d]."""
        return source if self.base_layer.batch_first or source.dim() == 2 else source.transpose(0, 1)

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
        refuse_nested(self.sites[adapters[0]].name if adapters else "an attention", query, key, value)
        deltas = self._deltas(adapters, key, value)
        first = base.batch_first and query.dim() == 3
        if first:
            query, key, value = turned(query, key, value)
        weight = self._weight()
        keys, values = self._projected(query, key, value, weight, deltas)
        if base.bias_k is not None:
            keys, values = with_bias(base, keys, values)
            attn_mask, key_padding_mask = longer(attn_mask, key_padding_mask)
            key = value = torch.cat([key, key[:1]])  # not read any more, but measured
        output, weights = F.multi_head_attention_forward(
            query,
            key,
            value,
            base.embed_dim,
            base.num_heads,
            weight,
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
        return (output.transpose(1, 0) if first else output), weights

    def _weight(self) -> Tensor | None:
        """Give the weight of the projections, as if it still trained where it did: that changes the rounding.

        `matmul` folds batch and tokens into one axis where a weight requires a gradient, wanted or not. Only
        in evaluation, since in training the gradient of such a weight would be computed for nothing.
        """
        base: Any = self.base_layer
        weight: Tensor | None = base.in_proj_weight
        unasked = self.training or torch.compiler.is_compiling() or torch.is_inference_mode_enabled()
        if weight is None or unasked or not self._trained:
            return weight
        return weight.detach().requires_grad_()

    def _deltas(self, adapters: list[str], key: Tensor, value: Tensor) -> dict[str, list[Tensor]]:
        """Compute what the experts add to keys ("k") and values ("v"), shaped as the inputs are."""
        deltas: dict[str, list[Tensor]] = {"k": [], "v": []}
        for adapter in adapters:
            site, turn = self.sites[adapter], None
            for part in self.parts_of(adapter):
                source = key if part.letter == "k" else value
                hidden = self._tokens(source)
                if turn is None or key is not value:
                    turn = site.turn(hidden, self, hidden.dim() == 2)
                if turn is not None:
                    delta = self.delta(turn, hidden, adapter, part) * self.strengths[adapter]
                    deltas[part.letter].append(self._tokens(delta) if source.dim() == 3 else delta)
        return deltas

    def _projected(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        weight: Tensor | None,
        deltas: dict[str, list[Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Make keys and values as torch does, of shape [tokens, batch, d], and add the experts' part."""
        base: Any = self.base_layer
        made = dict(zip("kv", project_as_torch(base, weight, query, key, value), strict=True))
        for letter, added in deltas.items():
            for delta in added:
                delta = delta.unsqueeze(1) if delta.dim() == 2 else delta
                delta = delta.transpose(0, 1) if base.batch_first and query.dim() == 3 else delta
                made[letter] = made[letter] + delta.to(made[letter].dtype)
        return made["k"], made["v"]


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

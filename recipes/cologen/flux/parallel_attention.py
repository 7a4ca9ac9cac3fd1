"""The source stream in FLUX.2's single blocks, whose one projection makes queries, keys, values and MLP."""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_flux2 import Flux2ParallelSelfAttention
from torch import Tensor

from prw import project
from recipes.cologen.flux.two_step import (
    NO_SOURCE,
    Rotary,
    SourceTokens,
    TwoStepProcessor,
    as_products_read,
    join,
    normed,
    segments_of,
)


class ParallelSourceStreamProcessor(TwoStepProcessor):
    """Two-step attention for a `Flux2ParallelSelfAttention`; without a source, just what the stock one does.

    The source is projected by a call of its own, because experts act on the key and value rows of the fused
    projection, and on source tokens alone.
    """

    def __call__(
        self,
        attn: Flux2ParallelSelfAttention,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
        source: SourceTokens = NO_SOURCE,
    ) -> Tensor:
        """Attend, and run the MLP beside it.

        Args:
            attn: the attention module.
            hidden_states: `[batch, text + noise + source, dim]`, normed and modulated.
            attention_mask: only None is taken when there is a source.
            image_rotary_emb: positions of text, noise and source, in this order.
            source: which tokens are source tokens, and what happens to their keys and values.

        Returns:
            `[batch, text + noise + source, dim]`.
        """
        self.check(attn, attention_mask, source)
        qkv, mlp = project_parallel(attn, as_products_read(hidden_states), source.num_in_sequence)
        # [batch, tokens, 3 * heads * head_dim] -> three of [batch, tokens, heads, head_dim]
        query, key, value = (part.unflatten(-1, (-1, attn.head_dim)) for part in qkv.chunk(3, dim=-1))
        query, key = normed(attn.norm_q, query), normed(attn.norm_k, key)
        attended = self.attend(query, key, value, image_rotary_emb, source, attention_mask)
        # [batch, tokens, heads * head_dim + mlp] -> [batch, tokens, dim]
        output: Tensor = attn.to_out(torch.cat([attended, mlp], dim=-1))
        return output


def project_parallel(
    attn: Flux2ParallelSelfAttention, tokens: Tensor, num_source: int
) -> tuple[Tensor, Tensor]:
    """Give queries, keys and values in one, and the MLP's activations.

    The activation runs segment by segment: it halves the widest tensor of the block before it is copied.
    """
    width = 3 * attn.inner_dim
    qkv, mlp = [], []
    for segment, routed in segments_of(tokens, num_source):
        fused = project(attn.to_qkv_mlp_proj, segment, routed=routed)
        qkv.append(fused[..., :width])
        mlp.append(attn.mlp_act_fn(fused[..., width:]))
    return join(qkv), join(mlp)

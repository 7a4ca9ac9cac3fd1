"""The source stream in FLUX attention: two-step attention as processors, for double and single blocks.

Source tokens run through the image stream's weights, attend only to themselves, and are the only tokens that
see experts; noise and text attend to text, noise and source (CoLoGen equations 5-7). No block is subclassed.
The two steps are in `two_step.py`, FLUX.2's fused single blocks in `parallel_attention.py`; how the tokens
and their position ids are made is not here (`model.py`, `flux2_model.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from diffusers.models.transformers.transformer_flux2 import (
    Flux2Attention,
    Flux2AttnProcessor,
    Flux2ParallelSelfAttention,
    Flux2ParallelSelfAttnProcessor,
)
from torch import Tensor

from prw import project
from recipes.cologen.errors import SourceStreamError
from recipes.cologen.flux.parallel_attention import ParallelSourceStreamProcessor
from recipes.cologen.flux.two_step import (
    NO_SOURCE,
    KeyValue,
    Rotary,
    SourceKV,
    SourceTokens,
    TwoStepProcessor,
    as_products_read,
    join,
    normed,
    refuse_fused,
    segments_of,
)

__all__ = [
    "REPLACEMENTS",
    "KeyValue",
    "SourceKV",
    "SourceStreamProcessor",
    "SourceTokens",
    "flux_attentions",
    "has_source_stream",
    "install_source_stream",
    "remove_source_stream",
]


class SourceStreamProcessor(TwoStepProcessor):
    """Two-step attention where K and V have projections of their own; without a source, as the stock one."""

    def __call__(
        self,
        attn: FluxAttention | Flux2Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
        source: SourceTokens = NO_SOURCE,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend.

        Args:
            attn: the attention module; `hidden_states` are normed and modulated, as its projections expect.
            hidden_states: `[batch, noise + source, dim]` in a double block, `[batch, text + noise + source,
                dim]` in a single block.
            encoder_hidden_states: text `[batch, text, dim]` in a double block, None in a single block.
            attention_mask: only None is taken when there is a source.
            image_rotary_emb: positions of text, noise and source, in this order.
            source: which tokens are source tokens, and what happens to their keys and values.

        Returns:
            Image tokens and text tokens (double block), or all tokens (single block).
        """
        self.check(attn, attention_mask, source)
        query, key, value = _project_streams(
            attn, hidden_states, encoder_hidden_states, source.num_in_sequence
        )
        attended = self.attend(query, key, value, image_rotary_emb, source, attention_mask)
        if encoder_hidden_states is None:
            return attended
        num_text = encoder_hidden_states.shape[1]
        text, image = attended[:, :num_text], attended[:, num_text:]
        if source is not NO_SOURCE or isinstance(attn, FluxAttention):
            # FLUX.2's stock processor leaves them strided, and torch may round such a product differently.
            text, image = text.contiguous(), image.contiguous()
        return attn.to_out[1](attn.to_out[0](image)), attn.to_add_out(text)


def _project_streams(
    attn: FluxAttention | Flux2Attention, image: Tensor, text: Tensor | None, num_source: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Give normed queries, keys and values `[batch, text + noise + source, heads, head_dim]`, all alike."""
    image = as_products_read(image)  # [batch, noise + source, width]
    # -> [batch, noise + source, heads, head_dim]
    query = normed(attn.norm_q, _split_heads(attn, attn.to_q(image)))
    segments = segments_of(image, num_source)
    keys = [
        normed(attn.norm_k, _split_heads(attn, project(attn.to_k, tokens, routed=routed)))
        for tokens, routed in segments
    ]
    values = [_split_heads(attn, project(attn.to_v, tokens, routed=routed)) for tokens, routed in segments]
    if text is not None:
        text = as_products_read(text)
        added_query = normed(attn.norm_added_q, _split_heads(attn, attn.add_q_proj(text)))
        added_key = _split_heads(attn, project(attn.add_k_proj, text, routed=False))
        query = torch.cat([added_query, query], dim=1)  # [batch, text + noise + source, heads, head_dim]
        keys.insert(0, normed(attn.norm_added_k, added_key))
        values.insert(0, _split_heads(attn, project(attn.add_v_proj, text, routed=False)))
    return query, join(keys), join(values)


def _split_heads(attn: FluxAttention | Flux2Attention, tokens: Tensor) -> Tensor:
    # [batch, tokens, heads * head_dim] -> [batch, tokens, heads, head_dim]
    heads = tokens.reshape(*tokens.shape[:2], tokens.shape[2] // attn.head_dim, attn.head_dim)
    return as_products_read(heads)  # of the wider dtype, if a quantised projection gives its input's


class Replacement(NamedTuple):
    """The stock processor of a kind of attention, and the one with a source stream that takes its place."""

    stock: type
    ours: type[TwoStepProcessor]


REPLACEMENTS: dict[type, Replacement] = {
    FluxAttention: Replacement(FluxAttnProcessor, SourceStreamProcessor),
    Flux2Attention: Replacement(Flux2AttnProcessor, SourceStreamProcessor),
    Flux2ParallelSelfAttention: Replacement(Flux2ParallelSelfAttnProcessor, ParallelSourceStreamProcessor),
}
"""Every kind of attention that can have a source stream; another family adds its rows here."""


def flux_attentions(transformer: Any) -> dict[str, Any]:
    """Name every attention of a FLUX transformer, double blocks first, as `named_modules` would.

    Raises:
        SourceStreamError: if one is of a kind that `REPLACEMENTS` does not list.
    """
    attentions = {
        f"{group}.{index}.attn": block.attn
        for group in ("transformer_blocks", "single_transformer_blocks")
        for index, block in enumerate(getattr(transformer, group))
    }
    for site, attn in attentions.items():
        if type(attn) not in REPLACEMENTS:
            raise SourceStreamError(
                f"{site} is a {type(attn).__name__}; a source stream is written for "
                f"{', '.join(kind.__name__ for kind in REPLACEMENTS)}. Write a processor for it and add its "
                "row to REPLACEMENTS (docs: Another MMDiT)."
            )
    return attentions


def has_source_stream(transformer: Any) -> bool:
    """Say whether every attention of the transformer has its source stream processor."""
    return all(_is_installed(attn) for attn in flux_attentions(transformer).values())


def install_source_stream(transformer: Any) -> None:
    """Give every attention of a stock FLUX transformer the two-step processor; weights stay as they are.

    Raises:
        SourceStreamError: if projections are fused, or an attention has a processor of somebody else's
            (nothing is changed then).
    """
    attentions = flux_attentions(transformer)
    for site, attn in attentions.items():
        refuse_fused(site, attn)
        stock = REPLACEMENTS[type(attn)].stock
        if type(attn.processor) is not stock:
            raise SourceStreamError(
                f"{site} has a {type(attn.processor).__name__}, where the stock {stock.__name__} was "
                "expected. If it is the source stream's own, it is installed already; if it is an "
                "IP-Adapter's or another library's, remove that first "
                f"(attn.set_processor({stock.__name__}()))."
            )
    for site, attn in attentions.items():
        attn.set_processor(REPLACEMENTS[type(attn)].ours(site, replaced=attn.processor))


def remove_source_stream(transformer: Any) -> None:
    """Put back the very processors that `install_source_stream` found.

    Raises:
        SourceStreamError: if an attention no longer has the source stream's processor (nothing is changed
            then).
    """
    attentions = flux_attentions(transformer)
    for site, attn in attentions.items():
        if not _is_installed(attn):
            raise SourceStreamError(
                f"{site} has a {type(attn.processor).__name__}, not the source stream's processor: it was "
                "never installed here, or was replaced since. Nothing was changed."
            )
    for attn in attentions.values():
        attn.set_processor(attn.processor.replaced)


def _is_installed(attn: Any) -> bool:
    return type(attn.processor) is REPLACEMENTS[type(attn)].ours

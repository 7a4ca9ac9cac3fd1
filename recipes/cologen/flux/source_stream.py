"""The source stream in FLUX attention: two-step attention as processors, for double and single blocks.

Source tokens run through the image stream's weights, attend only to themselves, and are the only tokens that
see experts; noise and text attend to text, noise and source (CoLoGen equations 5-7). No block is subclassed
and no mask is built: each step is one call on a slice. How the tokens and their position ids are made is not
here (`model.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxAttnProcessor,
    FluxTransformer2DModel,
)
from torch import Tensor

from prw import project
from recipes.cologen.errors import SourceStreamError

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of the positions, `[tokens, head_dim]` each."""


class KeyValue(NamedTuple):
    """Keys and values of one attention block, `[batch, tokens, heads, head_dim]`, normed and rotated."""

    key: Tensor
    value: Tensor


class SourceKV:
    """The source's keys and values of every attention block, written once and read any number of times.

    The second write of a site is ignored: it can only be the recomputation of a checkpointed block, whose
    tensors must not replace those that the noise stream has already read.
    """

    def __init__(self) -> None:
        self._pairs: dict[str, KeyValue] = {}
        self._with_gradients = torch.is_grad_enabled()

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the attention blocks written so far, in order."""
        return tuple(self._pairs)

    def write(self, site: str, pair: KeyValue) -> None:
        """Keep the pair of a site, unless the site has one.

        Raises:
            SourceStreamError: if gradients are wanted but are off, as under reentrant checkpointing.
        """
        if self._with_gradients and not torch.is_grad_enabled():
            raise SourceStreamError(
                f"{site}: the source pass runs without gradients although they are on outside it, so nothing "
                "would train through the source. Reentrant checkpointing does this: call "
                "transformer.enable_gradient_checkpointing() without a function of your own, or give one "
                "with use_reentrant=False."
            )
        self._pairs.setdefault(site, pair)

    def read(self, site: str) -> KeyValue:
        """Give the pair of a site.

        Raises:
            SourceStreamError: if that site was never written.
        """
        if site not in self._pairs:
            raise SourceStreamError(
                f"no source keys and values for {site!r}; this SourceKV holds "
                f"{list(self._pairs) or 'nothing'}. It was made with another transformer, or its source pass "
                "did not finish: make it anew with FluxModel.source_kv."
            )
        return self._pairs[site]


@dataclass(frozen=True)
class SourceTokens:
    """What one forward pass does about the source; blocks get it as `joint_attention_kwargs["source"]`."""

    num_in_sequence: int = 0
    """How many of the last image tokens are source tokens."""
    write: SourceKV | None = None
    """Where to keep the keys and values of those tokens."""
    read: SourceKV | None = None
    """Source keys and values from an earlier pass, appended to what noise and text attend to."""


NO_SOURCE = SourceTokens()


class SourceStreamProcessor:
    """Two-step attention for one `FluxAttention`; without a source, just what `FluxAttnProcessor` does."""

    # Set on the instance by diffusers' set_attention_backend and enable_parallelism.
    _attention_backend = None
    _parallel_config = None

    def __init__(self, site: str, replaced: FluxAttnProcessor) -> None:
        self.site = site
        self.replaced = replaced
        self._attention_backend = replaced._attention_backend
        self._parallel_config = replaced._parallel_config

    def __call__(
        self,
        attn: FluxAttention,
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
        self._check(attn, attention_mask, source)
        query, key, value = _project_streams(
            attn, hidden_states, encoder_hidden_states, source.num_in_sequence
        )
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        if source.write is not None:
            first = key.shape[1] - source.num_in_sequence
            _write(self, source.write, KeyValue(key[:, first:], value[:, first:]))
        if source.read is not None:
            pair = _read(self, source.read)
            key, value = torch.cat([key, pair.key], dim=1), torch.cat([value, pair.value], dim=1)
        attended = self._attend_in_two_steps(query, key, value, attention_mask, source.num_in_sequence)
        attended = attended.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return attended
        num_text = encoder_hidden_states.shape[1]
        text, image = attended[:, :num_text].contiguous(), attended[:, num_text:].contiguous()
        return attn.to_out[1](attn.to_out[0](image)), attn.to_add_out(text)

    def _attend_in_two_steps(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, num_source: int
    ) -> Tensor:
        """Let the source attend to itself, and everything before it to everything (equations 5-7)."""
        if num_source == 0:
            return self._attend(query, key, value, mask)
        first = query.shape[1] - num_source
        from_source = self._attend(query[:, first:], key[:, first:], value[:, first:])
        if first == 0:  # a pass over the source alone
            return from_source
        return torch.cat([self._attend(query[:, :first], key, value), from_source], dim=1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        attended: Tensor = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attended

    def _check(self, attn: FluxAttention, mask: Tensor | None, source: SourceTokens) -> None:
        if attn.fused_projections:
            raise _fused_error(self.site)
        if source is NO_SOURCE:
            return
        if mask is not None:
            raise SourceStreamError(
                f"{self.site}: attention_mask must be None when there is a source, got one of shape "
                f"{list(mask.shape)}. The two steps are two slices; a mask over the joined sequence would "
                "mean something else."
            )
        if self._parallel_config is not None:
            raise SourceStreamError(
                f"{self.site}: context parallelism splits the sequence evenly and would cut the source in "
                "two. Turn it off for this transformer; data parallelism works."
            )


def _project_streams(
    attn: FluxAttention, image: Tensor, text: Tensor | None, num_source: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Give normed queries, keys and values `[batch, text + noise + source, heads, head_dim]`."""
    first = image.shape[1] - num_source
    query = attn.norm_q(_split_heads(attn, attn.to_q(image)))
    # One tensor object for K and V: a PRW site recognises its input by identity and decides once for both.
    segments = [(image, False)] if num_source == 0 else [(image[:, :first], False), (image[:, first:], True)]
    segments = [(tokens, routed) for tokens, routed in segments if tokens.shape[1]]
    keys = [
        attn.norm_k(_split_heads(attn, project(attn.to_k, tokens, routed=routed)))
        for tokens, routed in segments
    ]
    values = [_split_heads(attn, project(attn.to_v, tokens, routed=routed)) for tokens, routed in segments]
    if text is not None:
        query = torch.cat([attn.norm_added_q(_split_heads(attn, attn.add_q_proj(text))), query], dim=1)
        keys.insert(0, attn.norm_added_k(_split_heads(attn, project(attn.add_k_proj, text, routed=False))))
        values.insert(0, _split_heads(attn, project(attn.add_v_proj, text, routed=False)))
    return query, _join(keys), _join(values)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a graph that knows no site serves all
def _write(processor: SourceStreamProcessor, kept: SourceKV, pair: KeyValue) -> None:
    kept.write(processor.site, pair)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _read(processor: SourceStreamProcessor, kept: SourceKV) -> KeyValue:
    return kept.read(processor.site)


def _split_heads(attn: FluxAttention, tokens: Tensor) -> Tensor:
    return tokens.reshape(*tokens.shape[:2], tokens.shape[2] // attn.head_dim, attn.head_dim)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def flux_attentions(transformer: FluxTransformer2DModel) -> dict[str, FluxAttention]:
    """Name every attention of the transformer, double blocks first, as `named_modules` would."""
    doubles = {f"transformer_blocks.{i}.attn": b.attn for i, b in enumerate(transformer.transformer_blocks)}
    singles = {
        f"single_transformer_blocks.{i}.attn": b.attn
        for i, b in enumerate(transformer.single_transformer_blocks)
    }
    return doubles | singles


def has_source_stream(transformer: FluxTransformer2DModel) -> bool:
    """Say whether every attention of the transformer has its source stream processor."""
    return all(
        type(attn.processor) is SourceStreamProcessor for attn in flux_attentions(transformer).values()
    )


def install_source_stream(transformer: FluxTransformer2DModel) -> None:
    """Give every attention of a stock FLUX transformer the two-step processor; weights stay as they are.

    Raises:
        SourceStreamError: if projections are fused, or an attention has a processor of somebody else's
            (nothing is changed then).
    """
    attentions = flux_attentions(transformer)
    for site, attn in attentions.items():
        if attn.fused_projections:
            raise _fused_error(site)
        if type(attn.processor) is not FluxAttnProcessor:
            raise SourceStreamError(
                f"{site} has a {type(attn.processor).__name__}, where the stock FluxAttnProcessor was "
                "expected. If it is the source stream's own, it is installed already; if it is an "
                "IP-Adapter's or another library's, remove that first "
                "(transformer.set_attn_processor(FluxAttnProcessor()))."
            )
    for site, attn in attentions.items():
        attn.set_processor(SourceStreamProcessor(site, replaced=attn.processor))


def remove_source_stream(transformer: FluxTransformer2DModel) -> None:
    """Put back the very processors that `install_source_stream` found.

    Raises:
        SourceStreamError: if an attention no longer has the source stream's processor (nothing is changed
            then).
    """
    attentions = flux_attentions(transformer)
    for site, attn in attentions.items():
        if type(attn.processor) is not SourceStreamProcessor:
            raise SourceStreamError(
                f"{site} has a {type(attn.processor).__name__}, not the source stream's processor: it was "
                "never installed here, or was replaced since. Nothing was changed."
            )
    for attn in attentions.values():
        attn.set_processor(attn.processor.replaced)


def _fused_error(site: str) -> SourceStreamError:
    return SourceStreamError(
        f"{site} has fused QKV projections, but source tokens need K and V of their own (and fusing silently "
        "drops adapters). Call transformer.unfuse_qkv_projections() first."
    )

"""Two-step attention whatever the base: the source attends to itself, noise and text to everything.

Source: CoLoGen (arXiv 2602.22150), equations 5-7. No mask is built: each step is one call on a slice. Here is
what the processors of all families share, and the source's keys and values; how a block projects its tokens
is in `source_stream.py` and `parallel_attention.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from prw.precision import product_dtype
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
                "did not finish: make it anew with model.source_kv."
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


class TwoStepProcessor:
    """What an attention processor with a source stream has in common with others; families add `__call__`."""

    # Set on the instance by diffusers' set_attention_backend and enable_parallelism.
    _attention_backend = None
    _parallel_config = None

    def __init__(self, site: str, replaced: Any) -> None:
        """Take the place of a stock processor, with its backend.

        Args:
            site: name of the attention in its transformer.
            replaced: the processor that was there; `remove_source_stream` puts it back.
        """
        self.site = site
        self.replaced = replaced
        self._attention_backend = replaced._attention_backend
        self._parallel_config = replaced._parallel_config

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotary: Rotary | None,
        source: SourceTokens,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Rotate, keep or fetch the source's keys and values, and attend in two steps.

        Args:
            query: `[batch, text + noise + source, heads, head_dim]`, normed; key and value likewise, and of
                the same dtype.
            key: what is attended to.
            value: what is read there.
            rotary: positions of text, noise and source, in this order.
            source: which tokens are source tokens, and what happens to their keys and values.
            mask: only without a source.

        Returns:
            `[batch, text + noise + source, heads * head_dim]`.
        """
        if rotary is not None:
            query = apply_rotary_emb(query, rotary, sequence_dim=1)
            key = apply_rotary_emb(key, rotary, sequence_dim=1)
        if source.write is not None:
            first = key.shape[1] - source.num_in_sequence
            # the last tokens: [batch, source, heads, head_dim]
            _write(self, source.write, KeyValue(key[:, first:], value[:, first:]))
        if source.read is not None:
            pair = _read(self, source.read)
            # [batch, text + noise, heads, head_dim] -> [batch, text + noise + source, heads, head_dim]
            key = torch.cat([key, pair.key.to(key.dtype)], dim=1)
            value = torch.cat([value, pair.value.to(value.dtype)], dim=1)
        attended = self._in_two_steps(query, key, value, mask, source.num_in_sequence)
        return attended.flatten(2, 3).to(query.dtype)  # heads, head_dim -> heads * head_dim

    def check(self, attn: Any, mask: Tensor | None, source: SourceTokens) -> None:
        """Refuse what two steps cannot do.

        Raises:
            SourceStreamError: fused projections; beside a source, a mask or context parallelism.
        """
        refuse_fused(self.site, attn)
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

    def _in_two_steps(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, num_source: int
    ) -> Tensor:
        """Let the source attend to itself, and everything before it to everything (equations 5-7)."""
        if num_source == 0:
            return self._dispatch(query, key, value, mask)
        first = query.shape[1] - num_source
        # -> [batch, source, heads, head_dim]
        from_source = self._dispatch(query[:, first:], key[:, first:], value[:, first:])
        if first == 0:  # a pass over the source alone
            return from_source
        # text and noise attend to all keys; -> [batch, text + noise + source, heads, head_dim]
        return torch.cat([self._dispatch(query[:, :first], key, value), from_source], dim=1)

    def _dispatch(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        attended: Tensor = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attended


# One compiled graph serves all blocks of a class, unless it holds the name of a site.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _write(processor: TwoStepProcessor, kept: SourceKV, pair: KeyValue) -> None:
    kept.write(processor.site, pair)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _read(processor: TwoStepProcessor, kept: SourceKV) -> KeyValue:
    return kept.read(processor.site)


def as_products_read(tokens: Tensor) -> Tensor:
    """Give tokens in the dtype in which the projections read them.

    On CUDA autocast computes norms in float32, and so the modulated tokens, which each of the projections
    would cast for itself. Cast once, they are also what the router sees, in training as in inference.
    """
    return tokens.to(product_dtype(tokens))


def normed(norm: nn.Module, heads: Tensor) -> Tensor:
    """Norm queries or keys and keep them in the dtype of products, as the values are.

    On CUDA autocast computes the norm in float32. The attention backends besides torch's own take one dtype
    for all three, and a float32 result would double what the blocks concatenate and the source's pairs keep.
    """
    result: Tensor = norm(heads)
    return result.to(product_dtype(heads))


def segments_of(tokens: Tensor, num_source: int) -> list[tuple[Tensor, bool]]:
    """Cut tokens into those that see no experts and those that do; empty parts are left out.

    K and V must be given the very same tensor objects: a PRW site recognises its input by identity and
    decides once for both.
    """
    if num_source == 0:
        return [(tokens, False)]
    first = tokens.shape[1] - num_source
    # [batch, text + noise, width] without experts, [batch, source, width] with them
    parts = [(tokens[:, :first], False), (tokens[:, first:], True)]
    return [(part, routed) for part, routed in parts if part.shape[1]]


def join(parts: list[Tensor]) -> Tensor:
    """Put segments one after another again; a single one stays as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def refuse_fused(site: str, attn: Any) -> None:
    """Refuse an attention whose separate projections were fused.

    Raises:
        SourceStreamError: says how to undo it.
    """
    if attn.fused_projections:
        raise SourceStreamError(
            f"{site} has fused QKV projections, but source tokens need K and V of their own (and fusing "
            "silently drops adapters). Call transformer.unfuse_qkv_projections() first."
        )

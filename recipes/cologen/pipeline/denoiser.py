"""Predicts velocities for one call of the pipeline: text and noise beside their source, or after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recipes.cologen.flux.base import SourceTimestep
from recipes.cologen.flux.two_step import KeyValue, SourceKV, SourceTokens


@dataclass(frozen=True, eq=False)
class Text:
    """Prompts as the transformer takes them, one row for each picture.

    Attributes:
        embeds: Embeddings `[pictures, text tokens, width]`.
        pooled: CLIP's pooled embeddings `[pictures, width]`; FLUX.2 has none, and a width of 0.
        ids: Positions of the text tokens `[text tokens, axes]`.
    """

    embeds: Tensor
    pooled: Tensor
    ids: Tensor


@dataclass(frozen=True, eq=False)
class SourceBatch:
    """The distinct sources of a call as tokens, and which of them each picture reads.

    Attributes:
        tokens: `[distinct, tokens, channels]`: the tokens of the first source, of the second, ...
        ids: Their positions `[tokens, axes]`.
        grids: Token rows and columns of the first source, of the second, ...
        index: Of each picture, int64 `[pictures]`.
    """

    tokens: Tensor
    ids: Tensor
    grids: tuple[tuple[int, int], ...]
    index: Tensor


class SharedSourceKV(SourceKV):
    """Keys and values of distinct sources, read as if every picture had its own; nothing is kept twice."""

    def __init__(self, distinct: SourceKV, index: Tensor, rows: int) -> None:
        """Say which row of the distinct ones each picture reads."""
        super().__init__()
        self._distinct, self._index, self._rows = distinct, index, rows

    def read(self, site: str) -> KeyValue:
        """Give the pair of a site, one row for each picture."""
        pair = self._distinct.read(site)
        if self._rows == 1:  # a view: one picture that all read costs the memory of one
            return KeyValue(*(part.expand(len(self._index), -1, -1, -1) for part in pair))
        return KeyValue(*(part.index_select(0, self._index) for part in pair))


class Denoiser:
    """The transformer with everything that stays the same over the steps of one call.

    With `zero`, a source's keys and values depend on nothing that a step changes: they are computed once for
    each distinct pair of source and pooled prompt (which enters the modulation), and read by every step and
    every picture that shares the pair. With `same` the source's timestep is that of the noise, so the source
    is computed again at every step, beside it.
    """

    def __init__(
        self,
        transformer: Any,
        source: SourceBatch | None,
        *,
        source_timestep: SourceTimestep,
        image_ids: Tensor,
        guidance: float | None,
        attention: Mapping[str, Any],
        keep: bool = True,
    ) -> None:
        """Take what is constant.

        Args:
            transformer: With the source stream installed.
            source: The sources, None for text alone.
            source_timestep: As the experts were trained.
            image_ids: Positions of the noise `[tokens, axes]`.
            guidance: Scale for a guidance-distilled base, None for others.
            attention: The user's `joint_attention_kwargs`.
            keep: Whether keys and values are kept for later steps; False computes them anew at each.
        """
        self._transformer, self._source, self._timestep = transformer, source, source_timestep
        self._image_ids, self._guidance, self._attention = image_ids, guidance, dict(attention)
        self._keep, self._kept, self._passes = keep, dict[str, SharedSourceKV](), 0
        self._decided_rows: Tensor | None = None

    def velocity(self, latents: Tensor, timestep: Tensor, text: Text, context: str) -> Tensor:
        """Predict the velocity of noisy tokens.

        Args:
            latents: `[pictures, tokens, channels]`.
            timestep: `[pictures]`, from 0 to 1.
            text: The prompts.
            context: `cond` or `uncond`: what is kept for one prompt is never read for the other.

        Returns:
            `[pictures, tokens, channels]`.
        """
        if self._source is None:
            return self._run(latents, self._image_ids, timestep, text, context, None)
        if self._timestep == "zero":
            use = SourceTokens(read=self._keys_and_values(text, context))
            return self._run(latents, self._image_ids, timestep, text, context, use)
        source = self._source
        # [distinct, tokens, channels] -> [pictures, tokens, channels]
        beside = source.tokens.index_select(0, source.index).to(latents.dtype)
        ids = torch.cat([self._image_ids, source.ids])
        tokens = torch.cat([latents, beside], dim=1)  # [pictures, noise + source, channels]
        use = SourceTokens(num_in_sequence=beside.shape[1])
        return self._run(tokens, ids, timestep, text, context, use)[:, : latents.shape[1]]

    def rows_decided(self) -> Tensor:
        """Which row of the latest pass over the sources each picture reads, int64 `[pictures]`."""
        assert self._source is not None  # only asked where there is one
        if self._decided_rows is None:
            return torch.arange(len(self._source.index))
        return self._decided_rows

    def _keys_and_values(self, text: Text, context: str) -> SharedSourceKV:
        if context not in self._kept:
            self._kept[context] = self._source_pass(text, context)
        return self._kept[context] if self._keep else self._kept.pop(context)

    def _source_pass(self, text: Text, context: str) -> SharedSourceKV:
        """Run the distinct sources alone at timestep 0, without text tokens."""
        source = self._source
        assert source is not None  # only called with one
        same_text = torch.zeros_like(source.index)
        if text.pooled.shape[1]:
            same_text = torch.unique(text.pooled.float(), dim=0, return_inverse=True)[1]
        # pairs [distinct, 2] of source and text, and which of them each picture reads: row [pictures]
        pairs, row = torch.unique(torch.stack([source.index, same_text], dim=1), dim=0, return_inverse=True)
        first = torch.stack([(row == number).nonzero()[0, 0] for number in range(len(pairs))])
        alone = Text(text.embeds[first, :0], text.pooled[first], text.ids[:0])
        tokens = source.tokens.index_select(0, source.index[first]).to(text.embeds.dtype)
        written = SourceKV()
        use = SourceTokens(num_in_sequence=tokens.shape[1], write=written)
        # A cache of blocks (FirstBlockCache) compares with the pass before in its context: none is like this.
        self._passes += 1
        name = f"{context}-source-{self._passes}"
        self._run(tokens, source.ids, tokens.new_zeros(len(tokens)), alone, name, use)
        self._decided_rows = row
        return SharedSourceKV(written, row, len(pairs))

    def _run(
        self,
        tokens: Tensor,
        ids: Tensor,
        timestep: Tensor,
        text: Text,
        context: str,
        use: SourceTokens | None,
    ) -> Tensor:
        guidance = None
        if self._guidance is not None:
            guidance = torch.full([tokens.shape[0]], self._guidance, device=tokens.device)
        # A copy: diffusers takes `scale` out of the mapping that it is given.
        attention = {**self._attention, **({} if use is None else {"source": use})}
        with self._transformer.cache_context(context):
            velocity: Tensor = self._transformer(
                hidden_states=tokens,
                timestep=timestep,
                guidance=guidance,
                **({"pooled_projections": text.pooled} if text.pooled.shape[1] else {}),
                encoder_hidden_states=text.embeds,
                txt_ids=text.ids,
                img_ids=ids,
                joint_attention_kwargs=attention,
                return_dict=False,
            )[0]
        return velocity


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models in eval mode (routers add no noise), and afterwards each module back as it was."""
    training = [module for model in models for module in model.modules() if module.training]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module in training:
            module.training = True

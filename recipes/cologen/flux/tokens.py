"""What FluxModel hands around: prompts as ids and as embeddings, pictures as tokens. Records only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class PromptIds:
    """Prompts as token ids, padded as FluxPipeline pads them."""

    clip: Tensor
    """`[batch, CLIP length]`."""
    t5: Tensor
    """`[batch, max_text_tokens]`."""


@dataclass(frozen=True)
class TextTokens:
    """Prompts as the transformer takes them."""

    embeds: Tensor
    """T5 embeddings `[batch, text tokens, joint dim]`."""
    pooled: Tensor
    """CLIP's pooled embedding `[batch, pooled dim]`."""


@dataclass(frozen=True)
class ImageTokens:
    """Pictures as packed latents."""

    tokens: Tensor
    """`[batch, rows * columns, channels]`."""
    rows: int
    """Token rows: height in pixels / (2 * vae_scale_factor)."""
    columns: int
    """Token columns."""

    def with_tokens(self, tokens: Tensor) -> ImageTokens:
        """Give the same grid with other tokens."""
        return replace(self, tokens=tokens)

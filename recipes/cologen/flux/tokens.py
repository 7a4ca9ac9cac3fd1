"""What a base hands around: prompts as ids and as embeddings, pictures as tokens. Records only."""

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
    """Embeddings `[batch, text tokens, joint dim]`: of T5, or of a language model's layers (FLUX.2)."""
    pooled: Tensor
    """CLIP's pooled embedding `[batch, pooled dim]`; `[batch, 0]` where a base reads none (FLUX.2)."""


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

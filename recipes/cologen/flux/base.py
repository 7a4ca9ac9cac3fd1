"""What a base must offer: all that training, sampling, validation, the commands and the report ask of it.

`FluxModel` (FLUX.1) and `Flux2Model` offer it; the passes of a velocity, which are the same for all, are in
`velocity.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from recipes.cologen.flux.tokens import ImageTokens, TextTokens
from recipes.cologen.flux.two_step import SourceKV

Sources = ImageTokens | Sequence[ImageTokens]
"""The source picture, or several."""

SourceTimestep = Literal["same", "zero"]
"""Timestep of the source: that of the noise (the paper), or always 0 (its K and V then serve every step)."""


class FluxBase(Protocol):
    """A frozen text-to-image transformer with a source stream, its VAE and text encoders."""

    scheduler: Any
    """Its `FlowMatchEulerDiscreteScheduler`, for the settings; sampling makes a fresh one of them."""

    @property
    def transformer(self) -> Any:
        """The module that the pool is woven into; a diffusers `ModelMixin`."""

    @property
    def device(self) -> torch.device:
        """Where the transformer is; inputs are expected there."""

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell, along each side; a token covers 2 x 2 cells."""

    @property
    def reads_guidance(self) -> bool:
        """Whether `velocity` wants a guidance scale."""

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Give the parts that hold weights, the transformer first."""

    def pipeline(self) -> Any:
        """Give a stock pipeline over the very same parts; it knows nothing of the source stream."""

    max_text_tokens: int
    """Length to which prompts are padded."""
    long_prompts: Literal["truncate", "refuse"]
    """What becomes of longer ones: cut at the end, as the stock pipeline does, or an error."""

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """Those prompts that have more than `max_text_tokens`."""

    def check_length(self, prompt: str) -> None:
        """Refuse a prompt that is longer than the base reads.

        Raises:
            PromptError: says by how much.
        """

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """List the words of a prompt that the tokenizer cannot spell."""

    @property
    def closed_vocabulary(self) -> frozenset[str] | None:
        """The words that it can read, if it reads those only; None if it can spell any word."""

    def encode_prompts(self, prompts: list[str]) -> TextTokens:
        """Give the prompts as the transformer takes them, as the stock pipeline does.

        Raises:
            PromptError: if a prompt is too long.
        """

    def encode_images(self, pixels: Tensor) -> ImageTokens:
        """Turn pixels `[batch, 3, height, width]` in [-1, 1] into tokens.

        Raises:
            ShapeError: if the sides are not multiples of `2 * vae_scale_factor`.
        """

    def decode(self, image: ImageTokens) -> Tensor:
        """Turn tokens into pixels `[batch, 3, height, width]`, in about [-1, 1], not clamped."""

    def latent_shape(self, batch: int, rows: int, columns: int) -> tuple[int, int, int, int]:
        """Shape in which the stock pipeline samples noise for pictures of so many token rows and columns."""

    def pack(self, latents: Tensor) -> ImageTokens:
        """Make tokens of latents of `latent_shape`."""

    def schedule_shift(self, num_tokens: int, steps: int) -> float:
        """The mu by which the stock pipeline shifts the times of a picture of so many tokens."""

    def velocity(
        self,
        noise: ImageTokens,
        timestep: Tensor,
        text: TextTokens,
        source: Sources | SourceKV | None = None,
        source_timestep: SourceTimestep = "same",
        guidance: float | None = None,
    ) -> Tensor:
        """Predict the flow velocity of noisy tokens, as `SourceVelocity.velocity` says."""

    def source_kv(self, source: Sources, text: TextTokens, guidance: float | None = None) -> SourceKV:
        """Run the source alone at timestep 0 and keep the keys and values of every block."""

"""What a base must offer: all that training, sampling, validation, the commands and the report ask of it.

`FluxModel` (FLUX.1) and `Flux2Model` offer it. `SourceVelocity` holds the part that is the same for every
base with a source stream: which passes are run, and what is kept of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from recipes.cologen.errors import GuidanceError, ShapeError, SourceStreamError
from recipes.cologen.flux.source_stream import has_source_stream
from recipes.cologen.flux.tokens import ImageTokens, TextTokens
from recipes.cologen.flux.two_step import SourceKV, SourceTokens

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
        """Shape in which the stock pipeline draws noise for pictures of so many token rows and columns."""

    def pack(self, latents: Tensor) -> ImageTokens:
        """Make tokens of latents of `latent_shape`."""

    def schedule_shift(self, num_tokens: int, steps: int) -> float:
        """The mu by which the stock pipeline shifts the times of a picture of so many tokens."""

    def velocity(
        self,
        noise: ImageTokens,
        timestep: Tensor,
        text: TextTokens,
        source: ImageTokens | SourceKV | None = None,
        source_timestep: SourceTimestep = "same",
        guidance: float | None = None,
    ) -> Tensor:
        """Predict the flow velocity of noisy tokens, as `SourceVelocity.velocity` says."""

    def source_kv(self, source: ImageTokens, text: TextTokens, guidance: float | None = None) -> SourceKV:
        """Run the source alone at timestep 0 and keep the keys and values of every block."""


class SourceVelocity(ABC):
    """The passes that a velocity takes, given how a family calls its transformer and numbers its tokens."""

    transformer: Any

    @abstractmethod
    def run(
        self,
        tokens: Tensor,
        ids: Tensor,
        timestep: Tensor,
        text: TextTokens,
        guidance: float | None,
        source: SourceTokens,
    ) -> Tensor:
        """Call the transformer once.

        Args:
            tokens: noise, or noise and source, or the source alone: `[batch, tokens, channels]`.
            ids: their positions `[tokens, axes]`.
            timestep: `[batch]` in [0, 1].
            text: the prompts; there may be no text tokens at all.
            guidance: scale for a guidance-distilled base, None for others.
            source: which of the tokens are source tokens, and what happens to their keys and values.

        Returns:
            `[batch, tokens, channels]`, in the dtype of the transformer.

        Raises:
            GuidanceError: if the base needs a guidance scale and got none, or the reverse.
        """

    @abstractmethod
    def position_ids(self, image: ImageTokens, *, is_source: bool = False) -> Tensor:
        """Number a picture's tokens `[rows * columns, axes]` for the rotary embedding."""

    @property
    def device(self) -> torch.device:
        """Where the transformer is; inputs are expected there."""
        device: torch.device = self.transformer.device
        return device

    @property
    def reads_guidance(self) -> bool:
        """Whether the base is guidance-distilled and wants a scale."""
        return bool(self.transformer.config.guidance_embeds)

    def velocity(
        self,
        noise: ImageTokens,
        timestep: Tensor,
        text: TextTokens,
        source: ImageTokens | SourceKV | None = None,
        source_timestep: SourceTimestep = "same",
        guidance: float | None = None,
    ) -> Tensor:
        """Predict the flow velocity (noise minus image) of noisy tokens.

        Args:
            noise: noisy tokens `[batch, rows * columns, channels]`.
            timestep: `[batch]` in [0, 1]; 1 is pure noise.
            text: the prompts.
            source: the source picture; or, with `zero`, its keys and values from `source_kv`; or None.
            source_timestep: `same` runs noise and source in one pass; `zero` runs the source alone at
                timestep 0 first.
            guidance: scale for a guidance-distilled base (FLUX.1-dev), None for others.

        Returns:
            Velocity `[batch, rows * columns, channels]`.

        Raises:
            GuidanceError: if the base needs a guidance scale and got none, or the reverse.
            ShapeError: if batch sizes differ.
            SourceStreamError: if there is a source but no source stream, or cached K and V with `same`.
        """
        if isinstance(source, ImageTokens):
            self._check_source(source, timestep)
            if source_timestep == "same":
                return self._velocity_beside(noise, source, timestep, text, guidance)
            source = self.source_kv(source, text, guidance)
        elif source is not None and source_timestep == "same":
            raise SourceStreamError(
                'cached source K/V hold for timestep 0 only: pass source_timestep="zero", or the source '
                'itself. With "same" the source stream changes at every step.'
            )
        use = SourceTokens() if source is None else SourceTokens(read=source)
        return self.run(noise.tokens, self.position_ids(noise), timestep, text, guidance, use)

    def source_kv(self, source: ImageTokens, text: TextTokens, guidance: float | None = None) -> SourceKV:
        """Run the source alone at timestep 0, without text tokens, and keep the K and V of every block.

        They serve every step of a sampling run. Where a base's modulation reads more than the timestep
        (FLUX.1: the pooled text; guidance-distilled bases: the scale), they hold for that alone; FLUX.2
        klein's hold for every prompt.

        Raises:
            GuidanceError, ShapeError, SourceStreamError: as in `velocity`.
        """
        timestep = torch.zeros(source.tokens.shape[0], device=self.device)
        self._check_source(source, timestep)
        kv = SourceKV()
        alone = TextTokens(embeds=text.embeds[:, :0], pooled=text.pooled)
        use = SourceTokens(source.tokens.shape[1], write=kv)
        ids = self.position_ids(source, is_source=True)
        self.run(source.tokens, ids, timestep, alone, guidance, use)
        return kv

    def _velocity_beside(
        self,
        noise: ImageTokens,
        source: ImageTokens,
        timestep: Tensor,
        text: TextTokens,
        guidance: float | None,
    ) -> Tensor:
        ids = torch.cat([self.position_ids(noise), self.position_ids(source, is_source=True)])
        tokens = torch.cat([noise.tokens, source.tokens.to(noise.tokens.dtype)], dim=1)
        use = SourceTokens(source.tokens.shape[1])
        return self.run(tokens, ids, timestep, text, guidance, use)[:, : noise.tokens.shape[1]]

    def _check_source(self, source: ImageTokens, timestep: Tensor) -> None:
        if not has_source_stream(self.transformer):
            raise SourceStreamError(
                "the transformer has no source stream, so it would read the source as more noise. Call "
                "install_source_stream(model.transformer) first; load_base_model does."
            )
        if source.tokens.shape[0] != timestep.shape[0]:
            raise ShapeError(
                f"every sample needs its own source: got {source.tokens.shape[0]} sources for "
                f"{timestep.shape[0]} timesteps."
            )


def guidance_vector(transformer: Any, guidance: float | None, tokens: Tensor) -> Tensor | None:
    """Give the scale to every sample, if the base reads one.

    Raises:
        GuidanceError: if the base needs a guidance scale and got none, or the reverse.
    """
    wanted = bool(transformer.config.guidance_embeds)
    if wanted and guidance is None:
        raise GuidanceError(
            "this base is guidance-distilled (guidance_embeds is true in its config) and needs a guidance "
            "scale: pass guidance=1.0 in training, about 3.5 when sampling."
        )
    if not wanted and guidance is not None:
        raise GuidanceError(
            "this base has no guidance embedding (guidance_embeds is false in its config), so "
            f"guidance={guidance} would do nothing: pass None."
        )
    return None if guidance is None else torch.full([tokens.shape[0]], guidance, device=tokens.device)


def check_sides(pixels: Tensor, side: int) -> None:
    """Refuse pixels that do not divide into tokens.

    Args:
        pixels: `[batch, 3, height, width]`.
        side: pixels that a token covers along each side.

    Raises:
        ShapeError: if they have another shape, or sides that are not multiples of `side`.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % side or pixels.shape[3] % side:
        raise ShapeError(
            "encode_images expects pixels [batch, 3, height, width] with sides that are multiples of "
            f"{side}, got {list(pixels.shape)}. Crop or resize the picture first."
        )

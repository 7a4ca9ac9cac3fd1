"""The passes that a velocity takes and what is kept of them, the same for every base with a source stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recipes.cologen.errors import GuidanceError, ShapeError, SourceStreamError
from recipes.cologen.flux.base import Sources, SourceTimestep
from recipes.cologen.flux.source_stream import has_source_stream
from recipes.cologen.flux.tokens import ImageTokens, TextTokens
from recipes.cologen.flux.two_step import SourceKV, SourceTokens


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
    def position_ids(self, image: ImageTokens, source: int | None = None) -> Tensor:
        """Number a picture's tokens `[rows * columns, axes]` for the rotary embedding.

        Args:
            image: the picture.
            source: which source it is, from 0 up; None for the noise.
        """

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
        source: Sources | SourceKV | None = None,
        source_timestep: SourceTimestep = "same",
        guidance: float | None = None,
    ) -> Tensor:
        """Predict the flow velocity (noise minus image) of noisy tokens.

        Args:
            noise: noisy tokens `[batch, rows * columns, channels]`.
            timestep: `[batch]` in [0, 1]; 1 is pure noise.
            text: the prompts.
            source: the source picture, or several; or, with `zero`, their keys and values from `source_kv`;
                or None.
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
        if isinstance(source, ImageTokens | Sequence):
            sources = self._checked_sources(source, timestep)
            if source_timestep == "same":
                return self._velocity_beside(noise, sources, timestep, text, guidance)
            source = self.source_kv(source, text, guidance)
        elif source is not None and source_timestep == "same":
            raise SourceStreamError(
                'cached source K/V hold for timestep 0 only: pass source_timestep="zero", or the source '
                'itself. With "same" the source stream changes at every step.'
            )
        use = SourceTokens() if source is None else SourceTokens(read=source)
        return self.run(noise.tokens, self.position_ids(noise), timestep, text, guidance, use)

    def source_kv(self, source: Sources, text: TextTokens, guidance: float | None = None) -> SourceKV:
        """Run the source, or several, alone at timestep 0, without text tokens; keep every block's K and V.

        They serve every step of a sampling run. Where a base's modulation reads more than the timestep
        (FLUX.1: the pooled text; guidance-distilled bases: the scale), they hold for that alone; FLUX.2
        klein's hold for every prompt.

        Raises:
            GuidanceError, ShapeError, SourceStreamError: as in `velocity`.
        """
        timestep = torch.zeros(text.embeds.shape[0], device=self.device)
        sources = self._checked_sources(source, timestep)
        kv = SourceKV()
        tokens = torch.cat([one.tokens for one in sources], dim=1)  # [batch, all source tokens, channels]
        alone = TextTokens(embeds=text.embeds[:, :0], pooled=text.pooled)  # no text tokens: [batch, 0, width]
        use = SourceTokens(tokens.shape[1], write=kv)
        self.run(tokens, self._source_ids(sources), timestep, alone, guidance, use)
        return kv

    def _velocity_beside(
        self,
        noise: ImageTokens,
        sources: Sequence[ImageTokens],
        timestep: Tensor,
        text: TextTokens,
        guidance: float | None,
    ) -> Tensor:
        num_noise = noise.tokens.shape[1]
        ids = torch.cat([self.position_ids(noise), self._source_ids(sources)])  # [noise + source, axes]
        # -> [batch, noise + source, channels]
        tokens = torch.cat([noise.tokens, *(one.tokens.to(noise.tokens.dtype) for one in sources)], dim=1)
        use = SourceTokens(tokens.shape[1] - num_noise)
        # the noise's part alone: [batch, noise, channels]
        return self.run(tokens, ids, timestep, text, guidance, use)[:, :num_noise]

    def _source_ids(self, sources: Sequence[ImageTokens]) -> Tensor:
        """Positions of all sources' tokens; each source is a picture of its own."""
        return torch.cat([self.position_ids(image, source=place) for place, image in enumerate(sources)])

    def _checked_sources(self, source: Sources, timestep: Tensor) -> Sequence[ImageTokens]:
        """All sources as a sequence, once they fit."""
        sources = (source,) if isinstance(source, ImageTokens) else source
        if not sources:
            raise ShapeError("there is an empty list of sources: give one at least, or None for none.")
        for one in sources:
            self._check_source(one, timestep)
        return sources

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

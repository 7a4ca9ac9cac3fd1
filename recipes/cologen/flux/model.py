"""FluxModel: a FLUX.1 base as the recipe uses it, from text and pictures to the velocity given a source.

The parts are stock diffusers and transformers classes. Sampling is in `sampling.py`, attention in
`source_stream.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from recipes.cologen.config_model import Quantisation
from recipes.cologen.errors import PromptError, ShapeError, SourceStreamError
from recipes.cologen.flux.folder import load_components
from recipes.cologen.flux.forward import run_transformer
from recipes.cologen.flux.latents import image_position_ids, pack_latents, unpack_latents
from recipes.cologen.flux.pixel_vae import PixelUnshuffleVAE
from recipes.cologen.flux.source_stream import (
    SourceKV,
    SourceTokens,
    has_source_stream,
    install_source_stream,
)
from recipes.cologen.flux.tokens import ImageTokens, PromptIds, TextTokens

SourceTimestep = Literal["same", "zero"]
"""Timestep of the source: that of the noise (the paper), or always 0 (its K and V then serve every step)."""

SOURCE_INDEX = 1
"""Image index of the source in the position ids, as in FLUX.1 Kontext; the noise has 0."""


@dataclass(eq=False)
class FluxModel:
    """The parts of a FLUX.1 pipeline, with the source stream as a second picture input."""

    transformer: FluxTransformer2DModel
    vae: AutoencoderKL | PixelUnshuffleVAE
    text_encoder: CLIPTextModel
    text_encoder_2: T5EncoderModel
    tokenizer: CLIPTokenizer
    tokenizer_2: T5Tokenizer
    scheduler: FlowMatchEulerDiscreteScheduler
    max_text_tokens: int
    """Length to which T5 prompts are padded."""
    long_prompts: Literal["truncate", "refuse"] = "refuse"
    """What becomes of longer ones: cut at the end, as FluxPipeline does, or an error."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        max_text_tokens: int | None = None,
        quantisation: Quantisation | None = None,
    ) -> FluxModel:
        """Load a FLUX.1 base from a diffusers folder, frozen, in eval mode, with the source stream installed.

        Args:
            path: folder with `model_index.json`, as `FluxPipeline.save_pretrained` writes it.
            dtype: of all weights.
            max_text_tokens: T5 tokens that prompts are padded to; None for those of the base's tokenizer.
            quantisation: format that the transformer's weights are kept in.

        Raises:
            BaseModelError: if the folder is missing, holds something else, or ships a VAE class that is not
                ours.
            MachineError: if the transformer cannot be quantised here.
        """
        parts = load_components(Path(path), dtype, quantisation)
        model = cls(**parts, max_text_tokens=max_text_tokens or parts["tokenizer_2"].model_max_length)
        for module in model.modules():
            module.requires_grad_(False).eval()
        install_source_stream(model.transformer)
        return model

    def pipeline(self) -> FluxPipeline:
        """Give a stock FluxPipeline over the very same parts (it knows nothing of sources)."""
        return FluxPipeline(
            scheduler=self.scheduler,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=self.text_encoder_2,
            tokenizer_2=self.tokenizer_2,
            transformer=self.transformer,
        )

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Give the parts that hold weights: transformer, VAE and the two text encoders."""
        return self.transformer, self.vae, self.text_encoder, self.text_encoder_2

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell, along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def device(self) -> torch.device:
        """Where the transformer is; inputs are expected there."""
        device: torch.device = self.transformer.device
        return device

    # ------------------------------------------------------------------------------------------------ text

    def tokenize(self, prompts: list[str]) -> PromptIds:
        """Turn prompts into ids, padded as FluxPipeline pads them.

        CLIP, which only gives the pooled vector, truncates.

        Raises:
            PromptError: if a prompt is too long, and `long_prompts` is `refuse`.
        """
        length, cut = self.max_text_tokens, self.long_prompts == "truncate"
        t5: list[list[int]] = self.tokenizer_2(
            prompts, padding="max_length", max_length=length, truncation=cut
        ).input_ids
        for prompt, ids in zip(prompts, t5, strict=True):
            if len(ids) > length:
                raise PromptError(
                    f"the prompt has {len(ids)} T5 tokens (its end mark included), but at most {length} are "
                    f"read: {prompt!r}. Shorten it, or set the base's max_text_tokens higher (FLUX.1-dev "
                    "reads up to 512), or let its end be cut off (base.long_prompts=truncate)."
                )
        clip = self.tokenizer(
            prompts, padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True
        ).input_ids
        return PromptIds(clip=torch.tensor(clip, device=self.device), t5=torch.tensor(t5, device=self.device))

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """Those prompts that have more than `max_text_tokens`, end mark included."""
        ids = self.tokenizer_2(list(prompts), padding=False, truncation=False).input_ids
        return [prompt for prompt, own in zip(prompts, ids, strict=True) if len(own) > self.max_text_tokens]

    def encode_ids(self, ids: PromptIds) -> TextTokens:
        """Run both text encoders, with gradients where their weights want them.

        As in FluxPipeline, padding is not masked: the transformer was trained to read padded prompts.
        """
        pooled = self.text_encoder(ids.clip, output_hidden_states=False).pooler_output
        embeds = self.text_encoder_2(ids.t5, output_hidden_states=False)[0]
        return TextTokens(embeds=embeds, pooled=pooled)

    def encode_prompts(self, prompts: list[str]) -> TextTokens:
        """Give what `FluxPipeline.encode_prompt` gives: embeddings of padded prompts and the pooled vector.

        Raises:
            PromptError: if a prompt is too long.
        """
        return self.encode_ids(self.tokenize(prompts))

    # -------------------------------------------------------------------------------------------- pictures

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> ImageTokens:
        """Turn pictures into tokens, by the mode of the VAE's distribution.

        Args:
            pixels: `[batch, 3, height, width]` in [-1, 1]; sides are multiples of `2 * vae_scale_factor`.

        Raises:
            ShapeError: if the sides do not fit.
        """
        side = 2 * self.vae_scale_factor
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % side or pixels.shape[3] % side:
            raise ShapeError(
                "encode_images expects pixels [batch, 3, height, width] with sides that are multiples of "
                f"{side}, got {list(pixels.shape)}. Crop or resize the picture first."
            )
        config = self.vae.config
        latents = self.vae.encode(pixels.to(self.vae.dtype), return_dict=False)[0].mode()
        latents = (latents - config.shift_factor) * config.scaling_factor
        return ImageTokens(pack_latents(latents), latents.shape[2] // 2, latents.shape[3] // 2)

    @torch.no_grad()
    def decode(self, image: ImageTokens) -> Tensor:
        """Turn tokens into pictures `[batch, 3, height, width]`, in about [-1, 1], not clamped."""
        config = self.vae.config
        latents = unpack_latents(image.tokens, 2 * image.rows, 2 * image.columns).to(self.vae.dtype)
        pixels: Tensor = self.vae.decode(
            latents / config.scaling_factor + config.shift_factor, return_dict=False
        )[0]
        return pixels

    # -------------------------------------------------------------------------------------------- velocity

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
        ids = image_position_ids(noise.rows, noise.columns, device=self.device)
        return run_transformer(self.transformer, noise.tokens, ids, timestep, text, guidance, use)

    def source_kv(self, source: ImageTokens, text: TextTokens, guidance: float | None = None) -> SourceKV:
        """Run the source alone at timestep 0, without text tokens, and keep the K and V of every block.

        They serve every step of a sampling run. The pooled text and the guidance scale still enter by the
        modulation, so another prompt needs another pass.

        Raises:
            GuidanceError, ShapeError, SourceStreamError: as in `velocity`.
        """
        timestep = torch.zeros(source.tokens.shape[0], device=self.device)
        self._check_source(source, timestep)
        kv = SourceKV()
        ids = image_position_ids(source.rows, source.columns, SOURCE_INDEX, self.device)
        alone = TextTokens(embeds=text.embeds[:, :0], pooled=text.pooled)
        run_transformer(
            self.transformer,
            source.tokens,
            ids,
            timestep,
            alone,
            guidance,
            SourceTokens(source.tokens.shape[1], write=kv),
        )
        return kv

    def _velocity_beside(
        self,
        noise: ImageTokens,
        source: ImageTokens,
        timestep: Tensor,
        text: TextTokens,
        guidance: float | None,
    ) -> Tensor:
        num_noise, num_source = noise.tokens.shape[1], source.tokens.shape[1]
        ids = torch.cat(
            [
                image_position_ids(noise.rows, noise.columns, device=self.device),
                image_position_ids(source.rows, source.columns, SOURCE_INDEX, self.device),
            ]
        )
        tokens = torch.cat([noise.tokens, source.tokens.to(noise.tokens.dtype)], dim=1)
        return run_transformer(
            self.transformer, tokens, ids, timestep, text, guidance, SourceTokens(num_source)
        )[:, :num_noise]

    def _check_source(self, source: ImageTokens, timestep: Tensor) -> None:
        if not has_source_stream(self.transformer):
            raise SourceStreamError(
                "the transformer has no source stream, so it would read the source as more noise. Call "
                "install_source_stream(model.transformer) first; FluxModel.load does."
            )
        if source.tokens.shape[0] != timestep.shape[0]:
            raise ShapeError(
                f"every sample needs its own source: got {source.tokens.shape[0]} sources for "
                f"{timestep.shape[0]} timesteps."
            )

"""FluxModel: a FLUX.1 base as the recipe uses it, from text and pictures to the velocity given a source.

The parts are stock diffusers and transformers classes. Sampling is in `sampling.py`, attention in
`source_stream.py`.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from recipes.cologen.config.model import MOST_TEXT_TOKENS, Quantisation
from recipes.cologen.errors import PromptError
from recipes.cologen.flux.base import SourceTimestep
from recipes.cologen.flux.folder import load_components
from recipes.cologen.flux.latents import image_position_ids, pack_latents, text_position_ids, unpack_latents
from recipes.cologen.flux.pixel_vae import PixelUnshuffleVAE
from recipes.cologen.flux.shift import dynamic_mu
from recipes.cologen.flux.source_stream import install_source_stream
from recipes.cologen.flux.tokens import ImageTokens, PromptIds, TextTokens
from recipes.cologen.flux.transfer import to_device
from recipes.cologen.flux.two_step import SourceTokens
from recipes.cologen.flux.velocity import SourceVelocity, check_sides, guidance_vector
from recipes.cologen.flux.vocabulary import unknown_words

__all__ = ["SOURCE_INDEX", "FluxModel", "SourceTimestep"]

SOURCE_INDEX = 1
"""Image index of the source in the position ids, as in FLUX.1 Kontext; noise has 0, further sources 2 ..."""


@dataclass(eq=False)
class FluxModel(SourceVelocity):
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
            max_text_tokens: T5 tokens that prompts are padded to; None for those of the base's tokenizer, but
                no more than FluxPipeline reads.
            quantisation: format that the transformer's weights are kept in.

        Raises:
            BaseModelError: if the folder is missing, holds something else, or ships a VAE class that is not
                ours.
            MachineError: if the transformer cannot be quantised here.
        """
        parts = load_components(Path(path), dtype, quantisation=quantisation)
        length = max_text_tokens or min(MOST_TEXT_TOKENS, parts["tokenizer_2"].model_max_length)
        model = cls(**parts, max_text_tokens=length)
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
        return PromptIds(*(to_device(torch.tensor(ids), self.device) for ids in (clip, t5)))

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

    def check_length(self, prompt: str) -> None:
        """Refuse a prompt that is too long.

        Raises:
            PromptError: says by how much.
        """
        self.tokenize([prompt])

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """List the words of a prompt that T5 cannot spell."""
        return unknown_words(self.tokenizer_2, prompt)

    @property
    def closed_vocabulary(self) -> frozenset[str] | None:
        """The words that T5 can read, if those alone: a real one can spell any word, letter by letter."""
        pieces = self.tokenizer_2.get_vocab()
        if set(string.ascii_lowercase) <= set(pieces):
            return None
        return frozenset(word for piece in pieces if (word := piece.removeprefix("▁")))

    # -------------------------------------------------------------------------------------------- pictures

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> ImageTokens:
        """Turn pictures into tokens, by the mode of the VAE's distribution.

        Args:
            pixels: `[batch, 3, height, width]` in [-1, 1]; sides are multiples of `2 * vae_scale_factor`.

        Raises:
            ShapeError: if the sides do not fit.
        """
        check_sides(pixels, 2 * self.vae_scale_factor)
        config = self.vae.config
        latents = self.vae.encode(pixels.to(self.vae.dtype), return_dict=False)[0].mode()
        # [batch, channels, height, width] -> [batch, rows * columns, 4 * channels]
        return self.pack((latents - config.shift_factor) * config.scaling_factor)

    def latent_shape(self, batch: int, rows: int, columns: int) -> tuple[int, int, int, int]:
        """Shape in which FluxPipeline samples noise: latent cells, two for a token along each side."""
        return batch, self.transformer.config.in_channels // 4, 2 * rows, 2 * columns

    def pack(self, latents: Tensor) -> ImageTokens:
        """Make a token of every 2 x 2 latent cells."""
        return ImageTokens(pack_latents(latents), latents.shape[2] // 2, latents.shape[3] // 2)

    @torch.no_grad()
    def decode(self, image: ImageTokens) -> Tensor:
        """Turn tokens into pictures `[batch, 3, height, width]`, in about [-1, 1], not clamped."""
        config = self.vae.config
        # [batch, rows * columns, 4 * channels] -> [batch, channels, height, width]
        latents = unpack_latents(image.tokens, 2 * image.rows, 2 * image.columns).to(self.vae.dtype)
        pixels: Tensor = self.vae.decode(
            latents / config.scaling_factor + config.shift_factor, return_dict=False
        )[0]
        return pixels

    # -------------------------------------------------------------------------------------------- velocity

    def run(
        self,
        tokens: Tensor,
        ids: Tensor,
        timestep: Tensor,
        text: TextTokens,
        guidance: float | None,
        source: SourceTokens,
    ) -> Tensor:
        """Call the transformer once, as FluxPipeline does; see `SourceVelocity.run`."""
        return run_transformer(self.transformer, tokens, ids, timestep, text, guidance, source)

    def position_ids(self, image: ImageTokens, source: int | None = None) -> Tensor:
        """Number a picture's tokens `[rows * columns, 3]`; noise and sources differ in the image index."""
        index = 0 if source is None else SOURCE_INDEX + source
        return image_position_ids(image.rows, image.columns, index, self.device)

    def schedule_shift(self, num_tokens: int, steps: int) -> float:
        """The mu by which FluxPipeline shifts the times: linear in the picture's tokens."""
        return dynamic_mu(self.scheduler.config, num_tokens)


def run_transformer(
    transformer: FluxTransformer2DModel,
    tokens: Tensor,
    ids: Tensor,
    timestep: Tensor,
    text: TextTokens,
    guidance: float | None,
    source: SourceTokens,
) -> Tensor:
    """Predict the velocity of image tokens.

    Args:
        transformer: the FLUX.1 transformer; with a source, it has the source stream's processors.
        tokens: noise, or noise and source, or the source alone: `[batch, tokens, channels]`.
        ids: their positions `[tokens, 3]`.
        timestep: `[batch]` in [0, 1].
        text: the prompts; there may be no text tokens at all.
        guidance: scale for a guidance-distilled base, None for others.
        source: which of the tokens are source tokens, and what happens to their keys and values.

    Returns:
        `[batch, tokens, channels]`, in the dtype of the transformer.

    Raises:
        GuidanceError: if the base needs a guidance scale and got none, or the reverse.
    """
    dtype = transformer.dtype
    velocity: Tensor = transformer(
        hidden_states=tokens.to(dtype),
        timestep=timestep,
        guidance=guidance_vector(transformer, guidance, tokens),
        pooled_projections=text.pooled.to(dtype),
        encoder_hidden_states=text.embeds.to(dtype),
        txt_ids=text_position_ids(text.embeds.shape[1], tokens.device),
        img_ids=ids,
        joint_attention_kwargs=None if source == SourceTokens() else {"source": source},
        return_dict=False,
    )[0]
    return velocity

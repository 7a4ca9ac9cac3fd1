"""Flux2Model: a FLUX.2 klein base as the recipe uses it. Its own pipeline's steps are called, not repeated.

What differs from FLUX.1: one text encoder (Qwen3) of which three layers are read, no pooled text, latents
normalised by the VAE's batch statistics, four position axes, and a source that is numbered like the first
reference picture of `Flux2KleinPipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from recipes.cologen.config.model import Quantisation
from recipes.cologen.errors import PromptError
from recipes.cologen.flux.folder import Layout, load_components, read_index
from recipes.cologen.flux.source_stream import install_source_stream
from recipes.cologen.flux.tokens import ImageTokens, TextTokens
from recipes.cologen.flux.two_step import SourceTokens
from recipes.cologen.flux.velocity import SourceVelocity, check_sides, guidance_vector

FLUX2_KLEIN = Layout(
    "FLUX.2 klein",
    Flux2KleinPipeline,
    ("scheduler", "vae", "text_encoder", "tokenizer", "transformer"),
    "FLUX.2-klein-4B, FLUX.2-klein-base-4B, or one of the 9B bases",
)
MAX_TEXT_TOKENS = 512
"""What the pipeline reads of a prompt, its chat template included."""


@dataclass(eq=False)
class Flux2Model(SourceVelocity):
    """The parts of a FLUX.2 klein pipeline, with the source stream as a second picture input."""

    transformer: Flux2Transformer2DModel
    vae: AutoencoderKLFlux2
    text_encoder: Qwen3ForCausalLM
    tokenizer: PreTrainedTokenizerBase
    scheduler: FlowMatchEulerDiscreteScheduler
    max_text_tokens: int = MAX_TEXT_TOKENS
    """Length to which prompts are padded, the chat template included."""
    long_prompts: Literal["truncate", "refuse"] = "refuse"
    """What becomes of longer ones: cut at the end, as `Flux2KleinPipeline` does, or an error."""
    is_distilled: bool = True
    """Whether the stock pipeline generates in few steps without steering by an empty prompt."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        max_text_tokens: int | None = None,
        quantisation: Quantisation | None = None,
    ) -> Flux2Model:
        """Load a FLUX.2 klein base from a diffusers folder, frozen, with the source stream installed.

        Args:
            path: folder with `model_index.json`, as `Flux2KleinPipeline.save_pretrained` writes it.
            dtype: of all weights.
            max_text_tokens: length to which prompts are padded; None for the pipeline's 512, or less if
                the tokenizer says so.
            quantisation: format that the transformer's weights are kept in.

        Raises:
            BaseModelError: if the folder is missing, holds something else, or lacks something.
            MachineError: if the transformer cannot be quantised here.
        """
        parts = load_components(Path(path), dtype, FLUX2_KLEIN, quantisation)
        length = max_text_tokens or min(MAX_TEXT_TOKENS, parts["tokenizer"].model_max_length)
        model = cls(**parts, max_text_tokens=length, is_distilled=_is_distilled(Path(path)))
        for module in model.modules():
            module.requires_grad_(False).eval()
        install_source_stream(model.transformer)
        return model

    def pipeline(self) -> Flux2KleinPipeline:
        """Give a stock pipeline over the very same parts; its reference pictures are no source stream."""
        return Flux2KleinPipeline(
            scheduler=self.scheduler,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            transformer=self.transformer,
            is_distilled=self.is_distilled,
        )

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Give the parts that hold weights: transformer, VAE and text encoder."""
        return self.transformer, self.vae, self.text_encoder

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell, along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    # ------------------------------------------------------------------------------------------------ text

    def check_length(self, prompt: str) -> None:
        """Refuse a prompt that is too long.

        Raises:
            PromptError: says by how much.
        """
        length = self._length(prompt)
        if length > self.max_text_tokens:
            raise PromptError(
                f"the prompt has {length} tokens (its chat template included), but at most "
                f"{self.max_text_tokens} are read: {prompt!r}. Shorten it, or set base.max_text_tokens "
                "higher, or let its end be cut off (base.long_prompts=truncate)."
            )

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """Those prompts that have more than `max_text_tokens`, chat template included."""
        return [prompt for prompt in prompts if self._length(prompt) > self.max_text_tokens]

    def _length(self, prompt: str) -> int:
        message = [{"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return len(self.tokenizer(text).input_ids)

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """Give nothing: the tokenizer spells any text byte by byte."""
        return ()

    @property
    def closed_vocabulary(self) -> None:
        """Give None: any text can be read."""
        return None

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> TextTokens:
        """Give what `Flux2KleinPipeline.encode_prompt` gives; there is no pooled vector.

        Padding is masked in the text encoder and not in the transformer, as it was trained. The language
        model's head, whose logits nobody reads, is left out.

        Raises:
            PromptError: if a prompt is too long, and `long_prompts` is `refuse`.
        """
        for prompt in prompts if self.long_prompts == "refuse" else ():
            self.check_length(prompt)
        embeds = Flux2KleinPipeline._get_qwen3_prompt_embeds(
            self.text_encoder.model,
            self.tokenizer,
            prompts,
            device=self.device,
            max_sequence_length=self.max_text_tokens,
        )
        return TextTokens(embeds=embeds, pooled=embeds.new_zeros(len(prompts), 0))

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
        latents = self.vae.encode(pixels.to(self.vae.dtype), return_dict=False)[0].mode()
        # [batch, channels, height, width] -> [batch, 4 * channels, rows, columns]
        latents = Flux2KleinPipeline._patchify_latents(latents)
        mean, std = self._statistics(latents)
        return self.pack((latents - mean) / std)

    def latent_shape(self, batch: int, rows: int, columns: int) -> tuple[int, int, int, int]:
        """Shape in which the pipeline samples noise: whole tokens."""
        return batch, self.transformer.config.in_channels, rows, columns

    def pack(self, latents: Tensor) -> ImageTokens:
        """Make a token of every cell of patchified latents."""
        return ImageTokens(Flux2KleinPipeline._pack_latents(latents), latents.shape[2], latents.shape[3])

    @torch.no_grad()
    def decode(self, image: ImageTokens) -> Tensor:
        """Turn tokens into pictures `[batch, 3, height, width]`, in about [-1, 1], not clamped."""
        tokens = image.tokens.transpose(1, 2)  # -> [batch, channels, rows * columns]
        latents = tokens.reshape(tokens.shape[0], tokens.shape[1], image.rows, image.columns)
        mean, std = self._statistics(latents)
        # [batch, 4 * channels, rows, columns] -> [batch, channels, height, width]
        latents = Flux2KleinPipeline._unpatchify_latents(latents * std + mean)
        pixels: Tensor = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return pixels

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the VAE's latents, `[1, channels, 1, 1]` each."""
        norm, shape = self.vae.bn, (1, -1, 1, 1)
        std = torch.sqrt(norm.running_var.view(shape) + self.vae.config.batch_norm_eps)
        return norm.running_mean.view(shape).to(latents), std.to(latents)

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
        """Call the transformer once, as `Flux2KleinPipeline` does; see `SourceVelocity.run`."""
        dtype = self.transformer.dtype
        keywords: dict[str, Any] | None = None if source == SourceTokens() else {"source": source}
        with tokens.device:  # the pipeline makes ids where torch makes tensors
            text_ids = Flux2KleinPipeline._prepare_text_ids(text.embeds[:1])
        velocity: Tensor = self.transformer(
            hidden_states=tokens.to(dtype),
            timestep=timestep,
            guidance=guidance_vector(self.transformer, guidance, tokens),
            encoder_hidden_states=text.embeds.to(dtype),
            txt_ids=text_ids,
            img_ids=ids,
            joint_attention_kwargs=keywords,
            return_dict=False,
        )[0]
        return velocity

    def position_ids(self, image: ImageTokens, source: int | None = None) -> Tensor:
        """Number a picture's tokens `[rows * columns, 4]`: picture, row, column, and 0 where text counts.

        Sources have the picture indices of the pipeline's reference pictures.
        """
        grid = torch.empty(1, 1, image.rows, image.columns, device="meta")
        with self.device:  # the pipeline makes ids where torch makes tensors
            if source is None:
                ids: Tensor = Flux2KleinPipeline._prepare_latent_ids(grid)
                return ids[0]
            # The pipeline numbers all reference pictures together; those before this one are of any size.
            ids = Flux2KleinPipeline._prepare_image_ids([grid] * (source + 1))
            return ids[0, -image.rows * image.columns :]

    def schedule_shift(self, num_tokens: int, steps: int) -> float:
        """The mu by which the pipeline shifts the times, fitted to the picture's tokens and the steps."""
        return float(compute_empirical_mu(num_tokens, steps))


def _is_distilled(folder: Path) -> bool:
    """Read from the index whether a base is distilled; the KV pipeline has such bases only."""
    index = read_index(folder)
    return bool(index.get("is_distilled", index["_class_name"] == "Flux2KleinKVPipeline"))

"""CoLoGenFlux2Pipeline: the same calls on FLUX.2 klein, over stock `Flux2KleinPipeline`.

`Flux2Model` knows FLUX.2's latents, positions and times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from recipes.cologen.errors import PromptError
from recipes.cologen.flux.flux2_model import FLUX2_KLEIN, MAX_TEXT_TOKENS, Flux2Model
from recipes.cologen.flux.offloading import compute_device
from recipes.cologen.flux.tokens import ImageTokens
from recipes.cologen.pipeline.denoiser import Text
from recipes.cologen.pipeline.family import token_side
from recipes.cologen.pipeline.pipeline import RoutedPipeline
from recipes.cologen.pipeline.request import Request


class Flux2Family:
    """FLUX.2's own way of a call, over the models of a pipeline; see `Family`."""

    def __init__(self, pipe: Any) -> None:
        """Take the pipeline."""
        self._pipe = pipe

    def model(self, longest: int | None = None) -> Flux2Model:
        """The parts as the recipe's model of the family; text parts are not needed with prompt_embeds."""
        readable = MAX_TEXT_TOKENS if self._pipe.tokenizer is None else self._pipe.tokenizer.model_max_length
        return Flux2Model(
            transformer=self._pipe.transformer,
            vae=self._pipe.vae,
            text_encoder=self._pipe.text_encoder,
            tokenizer=self._pipe.tokenizer,
            scheduler=self._pipe.scheduler,
            max_text_tokens=longest or min(MAX_TEXT_TOKENS, readable),
        )

    def check(self, request: Request) -> None:
        """As `Flux2KleinPipeline` does; and what only FLUX.1 has."""
        self._pipe.check_inputs(
            request.prompt,
            None,
            None,
            prompt_embeds=request.prompt_embeds,
            callback_on_step_end_tensor_inputs=request.callback_on_step_end_tensor_inputs,
            guidance_scale=1.0,
        )
        for name in (
            "prompt_2",
            "negative_prompt_2",
            "pooled_prompt_embeds",
            "negative_pooled_prompt_embeds",
        ):
            if getattr(request, name) is not None:
                raise PromptError(f"{name} is for FLUX.1, which has two text encoders; FLUX.2 has one.")

    def encode_text(
        self,
        request: Request,
        device: torch.device,
        prompts: list[str] | None,
        second: Any,
        embeds: Tensor | None,
        pooled: Tensor | None,
    ) -> Text:
        """By Qwen3; there are no pooled embeddings: their width is 0."""
        model = self.model(request.max_sequence_length)
        for prompt in prompts or () if embeds is None else ():
            model.check_length(prompt)
        encoded, ids = self._pipe.encode_prompt(
            prompt=prompts,
            prompt_embeds=None if embeds is None else embeds.to(device),
            device=device,
            num_images_per_prompt=request.num_images_per_prompt,
            max_sequence_length=model.max_text_tokens,
        )
        return Text(encoded, encoded.new_zeros(len(encoded), 0), ids[0])

    def starting_noise(
        self, request: Request, pictures: int, size: tuple[int, int], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `Flux2KleinPipeline` does."""
        channels = self._pipe.transformer.config.in_channels // 4
        latents, ids = self._pipe.prepare_latents(
            pictures, channels, *size, like.dtype, like.device, request.generator, request.latents
        )
        return latents, ids[0]

    def shift(self, num_tokens: int, steps: int) -> float:
        """By FLUX.2's law of size and steps."""
        return self.model().schedule_shift(num_tokens, steps)

    def source_ids(self, grids: Sequence[tuple[int, int]]) -> Tensor:
        """The first axis counts the sources, as stock code has it."""
        ids: Tensor = self._pipe._prepare_image_ids(
            [torch.empty(1, 1, *grid, device="meta") for grid in grids]
        )[0]
        return ids

    def encode(self, pixels: Tensor, like: Tensor) -> Tensor:
        """By the VAE and its running statistics."""
        pixels = pixels.to(compute_device(self._pipe.vae))
        return self.model().encode_images(pixels).tokens.to(like)

    def decode(self, tokens: Tensor, size: tuple[int, int], output_type: str) -> Any:
        """The other way, then to the output type."""
        rows, columns = (length // token_side(self._pipe) for length in size)
        if output_type == "latent":
            return tokens
        tokens = tokens.to(compute_device(self._pipe.vae))
        pixels = self.model().decode(ImageTokens(tokens, rows, columns))
        return self._pipe.image_processor.postprocess(pixels, output_type=output_type)


class CoLoGenFlux2Pipeline(RoutedPipeline, Flux2KleinPipeline):  # type: ignore[misc]  # diffusers is untyped
    """Generates pictures from a prompt and a source picture, with a pool of routed experts on FLUX.2 klein.

    There is no pooled prompt in its modulation, so with `zero` a source is computed once for all prompts.
    What `Flux2KleinPipeline` calls `guidance_scale` is `true_cfg_scale` here, with `negative_prompt=""`.

    Attributes:
        annotators: As in `CoLoGenPipeline`.
    """

    layout = FLUX2_KLEIN
    family_type = Flux2Family
    settings = ("is_distilled", "source_timestep", "generation", "base_schedule")

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKLFlux2,
        text_encoder: Qwen3ForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        transformer: Flux2Transformer2DModel,
        is_distilled: bool = False,
        source_timestep: str | None = None,
        generation: Mapping[str, Any] | None = None,
        base_schedule: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the parts.

        `source_timestep` is as the experts were trained (`same` where left out); `generation` holds the
        further settings of `GenerationSettings`, as a saved pipeline has them; `base_schedule` is how the
        base itself shifts steps, where a run's law has taken the place of its own.

        Raises:
            SourceStreamError: as for `CoLoGenPipeline`.
        """
        super().__init__(
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            transformer=transformer,
            is_distilled=is_distilled,
        )
        self._set_up(source_timestep, generation, base_schedule)

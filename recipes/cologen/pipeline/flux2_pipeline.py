"""CoLoGenFlux2Pipeline: the same calls on FLUX.2 klein, over stock `Flux2KleinPipeline`.

Its parts are seen through `Flux2Model`, which knows FLUX.2's latents, positions and times.
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
from recipes.cologen.pipeline.request import Asked
from recipes.cologen.pipeline.whole import Whole


class CoLoGenFlux2Pipeline(Whole, Flux2KleinPipeline):  # type: ignore[misc]  # diffusers is untyped
    """Draws pictures from a prompt and a source picture, with a pool of routed experts on FLUX.2 klein.

    There is no pooled prompt in its modulation, so with `zero` a source is computed once for all prompts.
    What `Flux2KleinPipeline` calls `guidance_scale` is `true_cfg_scale` here, with `negative_prompt=""`.

    Attributes:
        annotators: As in `CoLoGenPipeline`.
    """

    layout = FLUX2_KLEIN
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
        self._begin(source_timestep, generation, base_schedule)

    def _view(self, longest: int | None = None) -> Flux2Model:
        """The parts as the recipe's model of the family; the text parts are not needed with prompt_embeds."""
        readable = MAX_TEXT_TOKENS if self.tokenizer is None else self.tokenizer.model_max_length
        return Flux2Model(
            transformer=self.transformer,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            scheduler=self.scheduler,
            max_text_tokens=longest or min(MAX_TEXT_TOKENS, readable),
        )

    def _check_stock(self, asked: Asked) -> None:
        self.check_inputs(
            asked.prompt,
            None,
            None,
            prompt_embeds=asked.prompt_embeds,
            callback_on_step_end_tensor_inputs=asked.callback_on_step_end_tensor_inputs,
            guidance_scale=1.0,
        )
        for name in (
            "prompt_2",
            "negative_prompt_2",
            "pooled_prompt_embeds",
            "negative_pooled_prompt_embeds",
        ):
            if getattr(asked, name) is not None:
                raise PromptError(f"{name} is for FLUX.1, which has two text encoders; FLUX.2 has one.")

    def _text(
        self,
        asked: Asked,
        device: torch.device,
        prompts: list[str] | None,
        second: Any,
        embeds: Tensor | None,
        pooled: Tensor | None,
    ) -> Text:
        view = self._view(asked.max_sequence_length)
        for prompt in prompts or () if embeds is None else ():
            view.check_length(prompt)
        encoded, ids = self.encode_prompt(
            prompt=prompts,
            prompt_embeds=None if embeds is None else embeds.to(device),
            device=device,
            num_images_per_prompt=asked.num_images_per_prompt,
            max_sequence_length=view.max_text_tokens,
        )
        return Text(encoded, encoded.new_zeros(len(encoded), 0), ids[0])

    def _start(
        self, asked: Asked, pictures: int, size: tuple[int, int], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        channels = self.transformer.config.in_channels // 4
        latents, ids = self.prepare_latents(
            pictures, channels, *size, like.dtype, like.device, asked.generator, asked.latents
        )
        return latents, ids[0]

    def _shift(self, num_tokens: int, steps: int) -> float:
        return self._view().schedule_shift(num_tokens, steps)

    def _source_ids(self, grids: Sequence[tuple[int, int]]) -> Tensor:
        ids: Tensor = self._prepare_image_ids([torch.empty(1, 1, *grid, device="meta") for grid in grids])[0]
        return ids

    def _encode(self, pixels: Tensor, like: Tensor) -> Tensor:
        pixels = pixels.to(compute_device(self.vae))
        return self._view().encode_images(pixels).tokens.to(like)

    def _decode(self, tokens: Tensor, size: tuple[int, int], output_type: str) -> Any:
        rows, columns = (length // self._side for length in size)
        if output_type == "latent":
            return tokens
        tokens = tokens.to(compute_device(self.vae))
        pixels = self._view().decode(ImageTokens(tokens, rows, columns))
        return self.image_processor.postprocess(pixels, output_type=output_type)

"""What a call does before and after its steps: prompts, schedule, pictures into tokens and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor

from recipes.cologen.errors import PromptError, ShapeError
from recipes.cologen.flux.latents import pack_latents
from recipes.cologen.pipeline.adapters import LorasBesidePool
from recipes.cologen.pipeline.denoiser import SourceBatch, Text
from recipes.cologen.pipeline.request import Asked
from recipes.cologen.pipeline.sources import Sources
from recipes.cologen.pipeline.tasks import worded

MOST_TEXT = 512
"""T5 tokens that FLUX reads at most."""


class Parts(LorasBesidePool):
    """Steps of a call, on the models of the pipeline."""

    @property
    def _side(self) -> int:
        """Pixels a side that a token covers: 16 with FLUX's own VAE."""
        return int(2 * self.vae_scale_factor)

    def _texts(self, asked: Asked, device: torch.device) -> tuple[Text, Text | None]:
        """Encode the prompts and, where it is asked for, the negative ones."""
        prompts = asked.prompts()
        second = asked.prompt_2
        if prompts is not None:
            prompts = [worded(prompt, asked.task, asked.control) for prompt in prompts]
            second = [
                worded(one, asked.task, asked.control)
                for one in _each(second, len(prompts), "prompt_2") or ()
            ]
        text = self._text(
            asked, device, prompts, second or None, asked.prompt_embeds, asked.pooled_prompt_embeds
        )
        if not asked.has_negative:
            return text, None
        batch = text.embeds.shape[0] // asked.num_images_per_prompt
        away = self._text(
            asked,
            device,
            _each(asked.negative_prompt, batch, "negative_prompt"),
            _each(asked.negative_prompt_2, batch, "negative_prompt_2"),
            asked.negative_prompt_embeds,
            asked.negative_pooled_prompt_embeds,
        )
        if away.embeds.shape != text.embeds.shape:
            raise ShapeError(
                f"the negative prompt's embeddings {list(away.embeds.shape)} have another shape than the "
                f"prompt's {list(text.embeds.shape)}; make both from as many prompts, with one length."
            )
        return text, away

    def _text(
        self,
        asked: Asked,
        device: torch.device,
        prompts: list[str] | None,
        second: Any,
        embeds: Tensor | None,
        pooled: Tensor | None,
    ) -> Text:
        several = asked.num_images_per_prompt
        longest = asked.max_sequence_length
        if longest is None and self.tokenizer_2 is not None:
            longest = min(MOST_TEXT, self.tokenizer_2.model_max_length)
        encoded = self.encode_prompt(
            prompt=prompts,
            prompt_2=second,
            prompt_embeds=embeds,
            pooled_prompt_embeds=pooled,
            device=device,
            num_images_per_prompt=several,
            max_sequence_length=longest or MOST_TEXT,
            lora_scale=(asked.joint_attention_kwargs or {}).get("scale"),
        )
        if embeds is not None and pooled is not None:  # FluxPipeline leaves given ones as they are
            return Text(
                embeds.to(device).repeat_interleave(several, 0),
                pooled.to(device).repeat_interleave(several, 0),
                encoded[2],
            )
        return Text(*encoded)

    def _schedule(self, asked: Asked, num_tokens: int, device: torch.device) -> Tensor:
        """Set the scheduler's timesteps, shifted for the picture's size; a strength leaves the last."""
        config, steps = self.scheduler.config, asked.num_inference_steps
        shift = calculate_shift(
            num_tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        sigmas: Any = np.linspace(1.0, 1 / steps, steps) if asked.sigmas is None else asked.sigmas
        if config.get("use_flow_sigmas", False):
            sigmas = None
        timesteps, steps = retrieve_timesteps(self.scheduler, steps, device, sigmas=sigmas, mu=shift)
        first = int(max(steps - min(steps * asked.strength, steps), 0)) * self.scheduler.order
        self.scheduler.set_begin_index(first)
        chosen: Tensor = timesteps[first:]
        return chosen

    def _encode(self, pixels: Tensor, like: Tensor) -> Tensor:
        """Turn pictures `[batch, 3, height, width]` in [-1, 1] into tokens, by the mode of the VAE.

        Args:
            pixels: The pictures.
            like: A tensor of the dtype, on the device, that the tokens get.
        """
        config = self.vae.config
        pixels = pixels.to(get_module_execution_device(self.vae), self.vae.dtype)
        latents = self.vae.encode(pixels, return_dict=False)[0].mode()
        return pack_latents((latents - config.shift_factor) * config.scaling_factor).to(like)

    def _source_batch(
        self, sources: Sources, size: tuple[int, int], several: int, like: Tensor
    ) -> SourceBatch:
        index = torch.tensor(sources.index, device=like.device).repeat_interleave(several)
        rows, columns = (length // self._side for length in size)
        return SourceBatch(self._encode(sources.pixels, like), rows, columns, index)

    def _decode(self, tokens: Tensor, size: tuple[int, int], output_type: str) -> Any:
        """Turn tokens into pictures, as `FluxPipeline` does."""
        if output_type == "latent":
            return tokens
        latents = self._unpack_latents(tokens, *size, self.vae_scale_factor)
        latents = latents / self.vae.config.scaling_factor + self.vae.config.shift_factor
        latents = latents.to(get_module_execution_device(self.vae))
        pixels = self.vae.decode(latents, return_dict=False)[0]
        return self.image_processor.postprocess(pixels, output_type=output_type)


def _each(prompts: str | list[str] | None, batch: int, what: str) -> list[str] | None:
    """One for each prompt."""
    if prompts is None:
        return None
    listed = [prompts] * batch if isinstance(prompts, str) else list(prompts)
    if len(listed) != batch:
        raise PromptError(
            f"{what}: got {len(listed)} for {batch} prompts. Give one for all, or one for each."
        )
    return listed

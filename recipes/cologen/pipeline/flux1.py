"""CoLoGenPipeline: generates from a prompt, a source picture and a pool of experts, on FLUX.1.

Where there is nothing to say about sources and experts it is stock `FluxPipeline`: prompts, latents, offload,
LoRAs, saving of parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    T5EncoderModel,
    T5Tokenizer,
)

from recipes.cologen.errors import PromptError, SourceStreamError
from recipes.cologen.flux.folder import FLUX1
from recipes.cologen.flux.latents import image_position_ids, pack_latents
from recipes.cologen.flux.model import SOURCE_INDEX
from recipes.cologen.flux.offloading import compute_device
from recipes.cologen.flux.pixel_vae import PixelUnshuffleVAE
from recipes.cologen.pipeline.denoiser import Text
from recipes.cologen.pipeline.family import token_side
from recipes.cologen.pipeline.opening import PIXEL_VAE
from recipes.cologen.pipeline.pipeline import RoutedPipeline
from recipes.cologen.pipeline.request import Request

MOST_TEXT = 512
"""T5 tokens that FLUX reads at most."""


class Flux1Family:
    """FLUX.1's own way of a call, over the models of a pipeline; see `Family`."""

    def __init__(self, pipe: Any) -> None:
        """Take the pipeline."""
        self._pipe = pipe

    def check(self, request: Request) -> None:
        """As `FluxPipeline` does; sizes are checked where they are chosen."""
        side = token_side(self._pipe)
        self._pipe.check_inputs(
            request.prompt,
            request.prompt_2,
            side,
            side,
            negative_prompt=request.negative_prompt,
            negative_prompt_2=request.negative_prompt_2,
            prompt_embeds=request.prompt_embeds,
            negative_prompt_embeds=request.negative_prompt_embeds,
            pooled_prompt_embeds=request.pooled_prompt_embeds,
            negative_pooled_prompt_embeds=request.negative_pooled_prompt_embeds,
            callback_on_step_end_tensor_inputs=request.callback_on_step_end_tensor_inputs,
            max_sequence_length=request.max_sequence_length,
        )

    def encode_text(
        self,
        request: Request,
        device: torch.device,
        prompts: list[str] | None,
        second: Any,
        embeds: Tensor | None,
        pooled: Tensor | None,
    ) -> Text:
        """By CLIP and T5."""
        several = request.num_images_per_prompt
        longest = request.max_sequence_length
        if longest is None and self._pipe.tokenizer_2 is not None:
            longest = min(MOST_TEXT, self._pipe.tokenizer_2.model_max_length)
        encoded = self._pipe.encode_prompt(
            prompt=prompts,
            prompt_2=second,
            prompt_embeds=embeds,
            pooled_prompt_embeds=pooled,
            device=device,
            num_images_per_prompt=several,
            max_sequence_length=longest or MOST_TEXT,
            lora_scale=(request.joint_attention_kwargs or {}).get("scale"),
        )
        if embeds is not None and pooled is not None:  # FluxPipeline leaves given ones as they are
            return Text(
                embeds.to(device).repeat_interleave(several, 0),
                pooled.to(device).repeat_interleave(several, 0),
                encoded[2],
            )
        return Text(*encoded)

    def starting_noise(
        self, request: Request, pictures: int, size: tuple[int, int], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `FluxPipeline` does: unit noise of latents, 2 x 2 to a token."""
        channels = self._pipe.transformer.config.in_channels // 4
        noise: tuple[Tensor, Tensor] = self._pipe.prepare_latents(
            pictures, channels, *size, like.dtype, like.device, request.generator, request.latents
        )
        return noise

    def shift(self, num_tokens: int, steps: int) -> float:
        """By FLUX.1's line from 256 tokens to 4096."""
        config = self._pipe.scheduler.config
        return float(
            calculate_shift(
                num_tokens,
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.15),
            )
        )

    def source_ids(self, grids: Sequence[tuple[int, int]]) -> Tensor:
        """The first axis counts the sources; rows and columns follow."""
        return torch.cat(
            [
                image_position_ids(rows, columns, SOURCE_INDEX + place)
                for place, (rows, columns) in enumerate(grids)
            ]
        )

    def encode(self, pixels: Tensor, like: Tensor) -> Tensor:
        """Turn pictures `[batch, 3, height, width]` in [-1, 1] into tokens, by the mode of the VAE.

        Args:
            pixels: The pictures.
            like: A tensor of the dtype, on the device, that the tokens get.
        """
        config = self._pipe.vae.config
        pixels = pixels.to(compute_device(self._pipe.vae), self._pipe.vae.dtype)
        latents = self._pipe.vae.encode(pixels, return_dict=False)[0].mode()
        return pack_latents((latents - config.shift_factor) * config.scaling_factor).to(like)

    def decode(self, tokens: Tensor, size: tuple[int, int], output_type: str) -> Any:
        """Turn tokens into pictures, as `FluxPipeline` does."""
        if output_type == "latent":
            return tokens
        latents = self._pipe._unpack_latents(tokens, *size, self._pipe.vae_scale_factor)
        latents = latents / self._pipe.vae.config.scaling_factor + self._pipe.vae.config.shift_factor
        latents = latents.to(compute_device(self._pipe.vae))
        pixels = self._pipe.vae.decode(latents, return_dict=False)[0]
        return self._pipe.image_processor.postprocess(pixels, output_type=output_type)


class CoLoGenPipeline(RoutedPipeline, FluxPipeline):  # type: ignore[misc]  # diffusers is untyped
    """Generates pictures from a prompt and a source picture, with a pool of routed experts on FLUX.1.

    Made by `from_pretrained(base, prw=path)`, or from the parts of a FluxPipeline; the transformer then gets
    the source stream's attention processors, which change nothing where there is no source.

    Attributes:
        annotators: Kind of control map to the function that makes it of a picture, uint8 [height, width, 3];
            add your own.
    """

    layout = FLUX1
    family_type = Flux1Family

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL | PixelUnshuffleVAE,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        text_encoder_2: T5EncoderModel,
        tokenizer_2: T5Tokenizer,
        transformer: FluxTransformer2DModel,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        source_timestep: str | None = None,
        generation: Mapping[str, Any] | None = None,
        base_schedule: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the parts.

        `source_timestep` is as the experts were trained (`same` where left out); `generation` holds the
        further settings of `GenerationSettings`, as a saved pipeline has them; `base_schedule` is how the
        base itself shifts steps, where a run's law has taken the place of its own.

        Raises:
            SourceStreamError: The source timestep is neither `same` nor `zero`; or projections are fused or
                an attention has a processor of somebody else's.
        """
        super().__init__(
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            transformer=transformer,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
        if isinstance(vae, PixelUnshuffleVAE):
            self.register_to_config(vae=PIXEL_VAE)
        self._set_up(source_timestep, generation, base_schedule)

    def load_ip_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse an IP-Adapter, whose attention processors would replace the source stream's.

        Raises:
            SourceStreamError: Always.
        """
        raise SourceStreamError(
            "an IP-Adapter replaces the attention processors of every block, and with them the source stream "
            "and the experts. Give the picture as `image` instead, or use a plain FluxPipeline."
        )

    def _get_t5_prompt_embeds(self, prompt: Any = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Encode as `FluxPipeline` does, but refuse what it would cut off.

        Raises:
            PromptError: A prompt has more T5 tokens than are read.
        """
        most = kwargs.get("max_sequence_length", 512)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        for text, ids in zip(prompts, self.tokenizer_2(prompts).input_ids if prompts else (), strict=True):
            if len(ids) > most:
                raise PromptError(
                    f"the prompt has {len(ids)} T5 tokens (its end mark included), but {most} are read: "
                    f"{text!r}. Shorten it, or give a larger max_sequence_length (FLUX.1-dev reads 512)."
                )
        embeds: torch.Tensor = super()._get_t5_prompt_embeds(prompt, *args, **kwargs)
        return embeds

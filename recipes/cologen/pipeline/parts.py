"""What a call does before and after its steps: prompts, schedule, pictures into tokens and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import retrieve_timesteps
from torch import Tensor

from recipes.cologen.errors import PromptError, ShapeError
from recipes.cologen.pipeline.adapters import LorasBesidePool
from recipes.cologen.pipeline.denoiser import SourceBatch, Text
from recipes.cologen.pipeline.request import Asked
from recipes.cologen.pipeline.sources import Sources
from recipes.cologen.pipeline.tasks import worded


class Parts(LorasBesidePool, ABC):
    """Steps of a call, on the models of the pipeline; a family of bases fills in what is its own."""

    @property
    def _side(self) -> int:
        """Pixels a side that a token covers: 16 with FLUX's own VAE."""
        return int(2 * self.vae_scale_factor)

    def _texts(self, asked: Asked, device: torch.device) -> tuple[Text, Text | None]:
        """Encode the prompts and, where it is asked for, the negative ones."""
        prompts = asked.prompts()
        second = asked.prompt_2
        if asked.prompt_embeds is None or (asked.has_negative and asked.negative_prompt_embeds is None):
            self._refuse_without_text_parts()
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

    def _refuse_without_text_parts(self) -> None:
        """Refuse to read a prompt where encoders or tokenizers were left out.

        Raises:
            PromptError: Names what is missing.
        """
        text = ("text_encoder", "tokenizer")
        missing = [name for name, part in self.components.items() if name.startswith(text) and part is None]
        if missing:
            raise PromptError(
                f"the pipeline has no {', '.join(missing)}, so it cannot read a prompt. Give its "
                "embeddings, which another pipeline's encode_prompt makes (prompt_embeds, "
                "negative_prompt_embeds and, on FLUX.1, the pooled ones), or load the pipeline with its text "
                "encoders."
            )

    @abstractmethod
    def _text(
        self,
        asked: Asked,
        device: torch.device,
        prompts: list[str] | None,
        second: Any,
        embeds: Tensor | None,
        pooled: Tensor | None,
    ) -> Text:
        """Encode prompts, or take their embeddings; one row for each picture."""

    @abstractmethod
    def _check_stock(self, asked: Asked) -> None:
        """Refuse what the stock pipeline refuses."""

    @abstractmethod
    def _start(
        self, asked: Asked, pictures: int, size: tuple[int, int], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draw the starting noise `[pictures, tokens, channels]`, or take it; and its positions."""

    @abstractmethod
    def _shift(self, num_tokens: int, steps: int) -> float:
        """The mu by which the stock pipeline shifts the times of a picture of so many tokens."""

    @abstractmethod
    def _encode(self, pixels: Tensor, like: Tensor) -> Tensor:
        """Turn pictures `[batch, 3, height, width]` in [-1, 1] into tokens, by the mode of the VAE.

        Args:
            pixels: The pictures.
            like: A tensor of the dtype, on the device, that the tokens get.
        """

    @abstractmethod
    def _decode(self, tokens: Tensor, size: tuple[int, int], output_type: str) -> Any:
        """Turn tokens into what the stock pipeline gives for an output type."""

    @abstractmethod
    def _source_ids(self, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Number the tokens `[tokens, axes]` of the first source, the second, ...

        Args:
            grids: Token rows and columns of each.
        """

    def _schedule(self, asked: Asked, num_tokens: int, device: torch.device) -> Tensor:
        """Set the scheduler's timesteps, shifted for the picture's size; a strength leaves the last."""
        steps, shift = asked.num_inference_steps, self._shift(num_tokens, asked.num_inference_steps)
        sigmas: Any = np.linspace(1.0, 1 / steps, steps) if asked.sigmas is None else asked.sigmas
        if self.scheduler.config.get("use_flow_sigmas", False):
            sigmas = None
        timesteps, steps = retrieve_timesteps(self.scheduler, steps, device, sigmas=sigmas, mu=shift)
        first = int(max(steps - min(steps * asked.strength, steps), 0)) * self.scheduler.order
        self.scheduler.set_begin_index(first)
        chosen: Tensor = timesteps[first:]
        return chosen

    def _source_batch(self, sources: Sources, several: int, like: Tensor) -> SourceBatch:
        index = torch.tensor(sources.index, device=like.device).repeat_interleave(several)
        side, places = self._side, sources.pixels
        grids = tuple((pixels.shape[2] // side, pixels.shape[3] // side) for pixels in places)
        tokens = torch.cat([self._encode(pixels, like) for pixels in places], dim=1)
        return SourceBatch(tokens, self._source_ids(grids).to(like.device), grids, index)


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

"""What a family of bases does its own way within a call of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from recipes.cologen.pipeline.denoiser import Text
from recipes.cologen.pipeline.request import Request


class Family(Protocol):
    """The steps of a call that differ between FLUX.1 and FLUX.2, over the models of one pipeline."""

    def check(self, request: Request) -> None:
        """Refuse what the stock pipeline refuses."""

    def encode_text(
        self,
        request: Request,
        device: torch.device,
        prompts: list[str] | None,
        second: Any,
        embeds: Tensor | None,
        pooled: Tensor | None,
    ) -> Text:
        """Encode prompts, or take their embeddings; one row for each picture."""

    def starting_noise(
        self, request: Request, pictures: int, size: tuple[int, int], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The starting noise, sampled or given, and its positions.

        Returns:
            `[pictures, tokens, channels]` and `[tokens, axes]`.
        """

    def shift(self, num_tokens: int, steps: int) -> float:
        """The mu by which the stock pipeline shifts the times of a picture of so many tokens."""

    def encode(self, pixels: Tensor, like: Tensor) -> Tensor:
        """Turn pictures into tokens, by the mode of the VAE.

        Args:
            pixels: `[batch, 3, height, width]` in [-1, 1].
            like: A tensor of the dtype, on the device, that the tokens get.

        Returns:
            `[batch, tokens, channels]`.
        """

    def decode(self, tokens: Tensor, size: tuple[int, int], output_type: str) -> Any:
        """Turn tokens `[batch, tokens, channels]` into what the stock pipeline gives for an output type."""

    def source_ids(self, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Positions `[tokens, axes]` of the tokens of the first source, the second, ...

        Args:
            grids: Token rows and columns of each.
        """


def token_side(pipe: Any) -> int:
    """Pixels per side that a token covers: 16 with FLUX's own VAE."""
    return int(2 * pipe.vae_scale_factor)

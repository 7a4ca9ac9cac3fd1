"""A tiny random FLUX and inputs for it, shared by the tests of this folder."""

from collections.abc import Callable

import pytest
import torch

from recipes.cologen.flux import FluxModel, ImageTokens, TextTokens
from recipes.cologen.flux.tiny import build_tiny_flux

WORDS = ("a", "red", "blue", "green", "circle", "square", "on", "the", "left", "right", ",", ".", "2")

Build = Callable[..., FluxModel]
Inputs = Callable[..., tuple[ImageTokens, torch.Tensor, TextTokens, ImageTokens]]


@pytest.fixture
def build() -> Build:
    """Build a tiny random FLUX: two double and two single blocks of width 16."""

    def make(**shape: int | tuple[int, int, int]) -> FluxModel:
        small = {"width": 16, "heads": 2, "axes": (2, 2, 4), "text_width": 16, "max_text_tokens": 8}
        return build_tiny_flux(WORDS, **(small | shape))

    return make


@pytest.fixture
def inputs() -> Inputs:
    """Draw noise, timestep, text and source for a model; the grids are neither square nor equal."""

    def make(model: FluxModel, batch: int = 2) -> tuple[ImageTokens, torch.Tensor, TextTokens, ImageTokens]:
        dtype = model.transformer.dtype
        text = model.encode_prompts(["a red circle", "blue square on the left", "green"][:batch])
        text = TextTokens(text.embeds.to(dtype).detach(), text.pooled.to(dtype).detach())
        noise = ImageTokens(torch.randn(batch, 6, 48, dtype=dtype), rows=2, columns=3)
        source = ImageTokens(torch.randn(batch, 8, 48, dtype=dtype), rows=4, columns=2)
        return noise, torch.linspace(0.3, 0.9, batch, dtype=dtype), text, source

    return make

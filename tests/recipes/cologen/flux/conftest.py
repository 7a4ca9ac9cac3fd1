"""Tiny random bases and inputs for it, shared by the tests of this folder."""

from collections.abc import Callable

import pytest
import torch

from recipes.cologen.flux import Flux2Model, FluxBase, FluxModel, ImageTokens, TextTokens
from recipes.cologen.flux.tiny import build_tiny_flux
from recipes.cologen.tools.random_flux2 import build_random_flux2

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


@pytest.fixture(params=["FLUX.1", "FLUX.2"])
def either(request: pytest.FixtureRequest, build: Build) -> Build:
    """Build a tiny random base of each family in turn, with as many blocks."""

    def make(**shape: int | bool) -> FluxModel | Flux2Model:
        if request.param == "FLUX.1":
            return build(**shape)
        small = {"double_blocks": 2, "single_blocks": 2, "axes": (2, 2, 2, 2), "max_text_tokens": 96}
        return build_random_flux2(**(small | shape))

    return make


@pytest.fixture
def inputs() -> Inputs:
    """Draw noise, timestep, text and source for a model; the grids are neither square nor equal."""

    def make(model: FluxBase, batch: int = 2) -> tuple[ImageTokens, torch.Tensor, TextTokens, ImageTokens]:
        dtype, channels = model.transformer.dtype, model.transformer.config.in_channels
        text = model.encode_prompts(["a red circle", "blue square on the left", "green"][:batch])
        text = TextTokens(text.embeds.to(dtype).detach(), text.pooled.to(dtype).detach())
        noise = ImageTokens(torch.randn(batch, 6, channels, dtype=dtype), rows=2, columns=3)
        source = ImageTokens(torch.randn(batch, 8, channels, dtype=dtype), rows=4, columns=2)
        return noise, torch.linspace(0.3, 0.9, batch, dtype=dtype), text, source

    return make

"""A tiny random pipeline of the real classes: FLUX's VAE at its scale of 8, two experts, W != H."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

import prw
from recipes.cologen.flux import FluxModel
from recipes.cologen.flux.tiny import build_tiny_flux
from recipes.cologen.pipeline import CoLoGenFlux2Pipeline, CoLoGenPipeline, pipeline_over
from recipes.cologen.tools.random_flux2 import build_random_flux2

WORDS = (
    "a",
    "the",
    "same",
    "object",
    "make",
    "small",
    "red",
    "circle",
    "green",
    "blue",
    "square",
    "on",
    "top",
    "left",
    "draw",
    "box",
    "around",
    "canny",
    "edge",
    "soft",
    "to",
    "image",
    "line",
    "art",
    "depth",
    "map",
    "segmentation",
)
FOUR = ("DownEncoderBlock2D",) * 4
Build = Callable[..., CoLoGenPipeline]


def tiny_vae() -> AutoencoderKL:
    """Random weights; one latent cell for 8 x 8 pixels, as FLUX's own."""
    return AutoencoderKL(
        down_block_types=FOUR,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        latent_channels=12,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    ).eval()


def tiny_base(**shape: Any) -> FluxModel:
    """The base in eval mode."""
    small = {"width": 16, "heads": 2, "axes": (2, 2, 4), "text_width": 16, "max_text_tokens": 12}
    model = build_tiny_flux(WORDS, **(small | shape))
    for part in model.modules():
        part.eval()
    return model


def add_pool(model: torch.nn.Module, **settings: Any) -> prw.Weave:
    """Two experts that are heard, and gates that choose both."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        weave = prw.inject(model, **({"rank": 2, "experts": ["inpainting", "grounding"]} | settings))
    weights = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if ".prw_B" in name or ".prw_g" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=weights)
    return weave


def make(experts: bool = True, pixel_vae: bool = False, pool: Any = None, **shape: Any) -> CoLoGenPipeline:
    """Build a pipeline."""
    model = tiny_base(**shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        parts = model.pipeline().components
        pipe = CoLoGenPipeline(**(parts if pixel_vae else {**parts, "vae": tiny_vae()}))
    if experts:
        add_pool(pipe.transformer, **(pool or {}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_klein(experts: bool = True, pool: Any = None, **shape: Any) -> CoLoGenFlux2Pipeline:
    """Build a pipeline over FLUX.2 klein's classes."""
    model = build_random_flux2(**({"double_blocks": 1, "single_blocks": 2} | shape))
    if experts:
        add_pool(model.transformer, **(pool or {}))
    pipe = pipeline_over(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: CoLoGenPipeline, *args: Any, seed: int = 0, **changes: Any) -> Any:
    """Draw with few steps; gives numpy pictures unless told otherwise."""
    usual = {"num_inference_steps": 2, "output_type": "np"}
    if "generator" not in changes:
        usual["generator"] = torch.Generator().manual_seed(seed)
    return pipe(*(args or ("a red circle",)), **(usual | changes))


def difference(one: Any, other: Any) -> float:
    """Largest difference between two results, or their pictures."""
    one, other = (getattr(result, "images", result) for result in (one, other))
    return float(np.abs(np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)).max())


@pytest.fixture
def build() -> Build:
    return make


@pytest.fixture
def made() -> Callable[..., Any]:
    """A pipeline of a family: flux1 or klein."""
    return lambda family, **asked: {"flux1": make, "klein": make_klein}[family](**asked)


@pytest.fixture
def pipe() -> CoLoGenPipeline:
    return make()


@pytest.fixture
def photo() -> np.ndarray:
    return picture(0)


def picture(seed: int, height: int = 48, width: int = 32) -> np.ndarray:
    """A random picture without pure black."""
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def tools() -> SimpleNamespace:
    """The functions above, for tests that do not import this file."""
    return SimpleNamespace(
        draw=draw, difference=difference, picture=picture, add_pool=add_pool, base=tiny_base
    )

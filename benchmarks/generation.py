"""Whole pictures of a FLUX with FLUX.1's proportions: text alone, CoLoGen, and Kontext's way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxPipeline
from torch import Tensor, nn

from benchmarks.flux_steps import Geometry, base_weights, plain, with_pool
from recipes.cologen.flux.base import SourceTimestep
from recipes.cologen.flux.latents import pack_latents
from recipes.cologen.flux.source_stream import install_source_stream
from recipes.cologen.pipeline import CoLoGenPipeline

PLAIN_TEXT, KONTEXT = "FluxPipeline, text alone", "FluxKontextPipeline"
CACHED, UNCACHED = "CoLoGen, source cached", "CoLoGen, source at every step"
GUIDANCE = 3.5
SCALE = 8
"""Pixels per latent cell, as in FLUX.1."""


@dataclass(frozen=True)
class Scene:
    """What is drawn: a model, its tokens, and how many steps.

    Attributes:
        geometry: Of the model; `side` x `side` noise tokens, and as many of the source.
        steps: Euler steps.
    """

    geometry: Geometry
    steps: int = 28

    @property
    def tokens(self) -> int:
        """Noise tokens."""
        return self.geometry.side**2

    def shorter(self, steps: int) -> Scene:
        """The same picture in fewer steps."""
        return replace(self, steps=steps)


class Drawer(NamedTuple):
    """One way of drawing.

    Attributes:
        draw: Draws one picture, to latents, in a number of steps.
        model: What it draws with.
        experts: Size of its pool; 0 is none.
    """

    draw: Callable[[int], Tensor]
    model: nn.Module
    experts: int = 0


class Given(NamedTuple):
    """What every way of drawing starts from: latents [1, 16, 2 side, 2 side], a picture, text, pooled text.

    `source` is Kontext's, `picture` CoLoGen's; None is no source.
    """

    noise: Tensor
    source: Tensor
    picture: Tensor | None
    embeds: Tensor
    pooled: Tensor


def given(geometry: Geometry) -> Given:
    """Draw the inputs."""
    generator = torch.Generator().manual_seed(2)
    latents = (1, 16, 2 * geometry.side, 2 * geometry.side)
    return Given(
        torch.randn(latents, generator=generator),
        torch.randn(latents, generator=generator),
        torch.rand(1, 3, SCALE * latents[2], SCALE * latents[3], generator=generator),
        torch.randn(1, geometry.text, geometry.width * 4 // 3, generator=generator),
        torch.randn(1, geometry.width // 4, generator=generator),
    )


def vae() -> AutoencoderKL:
    """A small VAE of FLUX.1's scale: CoLoGen's source passes it once, and nothing is decoded."""
    return AutoencoderKL(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    )


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1-dev's scheduler."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def by_diffusers(kind: type[Any], model: nn.Module, inputs: Given, **more: Any) -> Callable[[int], Tensor]:
    """Draw with a pipeline of diffusers, to latents."""
    pipeline = kind(
        scheduler=scheduler(),
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=model,
    )
    pipeline.set_progress_bar_config(disable=True)
    side = inputs.noise.shape[-1] * SCALE

    def draw(steps: int) -> Tensor:
        drawn: Tensor = pipeline(
            prompt_embeds=inputs.embeds,
            pooled_prompt_embeds=inputs.pooled,
            latents=pack_latents(inputs.noise),
            height=side,
            width=side,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            output_type="latent",
            **more,
        ).images
        return drawn

    return draw


def by_cologen(model: nn.Module, inputs: Given, timestep: SourceTimestep) -> Callable[[int], Tensor]:
    """Draw with CoLoGen's pipeline, to latents; it encodes its source, which Kontext is given as latents."""
    install_source_stream(model)
    return by_diffusers(CoLoGenPipeline, model, inputs, image=inputs.picture, source_timestep=timestep)


def drawers(geometry: Geometry, experts: tuple[int, ...] = (1, 5)) -> dict[str, Drawer]:
    """Build every way of drawing, on shared base weights."""
    weights, inputs = base_weights(geometry), given(geometry)
    base = plain(geometry, weights).eval()
    side = inputs.noise.shape[-1] * SCALE
    # Left alone, it would enlarge every picture to a million pixels.
    kontext = partial(by_diffusers, FluxKontextPipeline, image=inputs.source, max_area=side**2)
    found = {
        PLAIN_TEXT: Drawer(by_diffusers(FluxPipeline, base, inputs), base),
        KONTEXT: Drawer(kontext(base, inputs), base),
    }
    ways: list[tuple[str, SourceTimestep, int]] = [(CACHED, "zero", size) for size in experts]
    for name, timestep, size in [*ways, (UNCACHED, "same", experts[-1])]:
        model, _ = with_pool(geometry, weights, size)
        found[f"{name}, N={size}"] = Drawer(by_cologen(model.eval(), inputs, timestep), model, size)
    return found


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights, experts included."""
    return sum(value.numel() * value.element_size() for value in model.parameters())

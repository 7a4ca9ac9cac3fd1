"""Whole pictures of a FLUX with FLUX.1's proportions: text alone, CoLoGen, and Kontext's way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxPipeline
from torch import Tensor, nn

from benchmarks.cases import CACHED, KONTEXT, PLAIN_TEXT, UNCACHED
from benchmarks.flux import Geometry, base_weights, plain, with_pool
from benchmarks.schema import Picture
from benchmarks.timing import MIB, Device, Times, beside, paired, tidy
from recipes.cologen.flux.base import SourceTimestep
from recipes.cologen.flux.latents import pack_latents
from recipes.cologen.flux.source_stream import install_source_stream
from recipes.cologen.pipeline import CoLoGenPipeline

GUIDANCE = 3.5
SCALE = 8
"""Pixels per latent cell, as in FLUX.1."""
MEMORY_STEPS = 2
"""Steps of the run whose memory is counted: a third would take no more."""
Generate = Callable[[int], Tensor]
"""Generates one picture, to latents, in a number of steps."""


class Generator(NamedTuple):
    """One way of generating a picture, the model that it uses, and the size of its pool; 0 is none."""

    generate: Generate
    model: nn.Module
    experts: int = 0


class Inputs(NamedTuple):
    """What every way starts from."""

    noise: Tensor  # latents [1, 16, 2 side, 2 side]
    source: Tensor  # likewise, for Kontext
    picture: Tensor | None  # the source for CoLoGen; None is no source
    embeds: Tensor
    pooled: Tensor


def inputs(geometry: Geometry) -> Inputs:
    """Make the inputs."""
    generator = torch.Generator().manual_seed(2)
    latents = (1, 16, 2 * geometry.side, 2 * geometry.side)
    return Inputs(
        torch.randn(latents, generator=generator),
        torch.randn(latents, generator=generator),
        torch.rand(1, 3, SCALE * latents[2], SCALE * latents[3], generator=generator),
        torch.randn(1, geometry.text, geometry.width * 4 // 3, generator=generator),
        torch.randn(1, geometry.width // 4, generator=generator),
    )


def vae() -> AutoencoderKL:
    """A small VAE of FLUX.1's scale: CoLoGen's source passes it once, and nothing is decoded."""
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    shape = {"block_out_channels": (4,) * 4, "down_block_types": down, "up_block_types": up}
    scale = {"latent_channels": 16, "norm_num_groups": 2, "shift_factor": 0.0, "scaling_factor": 1.0}
    return AutoencoderKL(**shape, **scale, use_quant_conv=False, use_post_quant_conv=False)


def by_diffusers(kind: type[Any], model: nn.Module, given: Inputs, **more: Any) -> Generate:
    """Generate with a pipeline of diffusers, to latents, by FLUX.1-dev's scheduler."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    no_text = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline = kind(scheduler=scheduler, vae=vae(), transformer=model, **no_text)
    pipeline.set_progress_bar_config(disable=True)
    side = given.noise.shape[-1] * SCALE
    text = {"prompt_embeds": given.embeds, "pooled_prompt_embeds": given.pooled, "guidance_scale": GUIDANCE}
    picture = {"latents": pack_latents(given.noise), "height": side, "width": side, "output_type": "latent"}

    def generate(steps: int) -> Tensor:
        latents: Tensor = pipeline(num_inference_steps=steps, **text, **picture, **more).images
        return latents

    return generate


def by_cologen(model: nn.Module, given: Inputs, timestep: SourceTimestep) -> Generate:
    """Generate with CoLoGen's pipeline, to latents; it encodes its source, which Kontext gets as latents."""
    install_source_stream(model)
    return by_diffusers(CoLoGenPipeline, model, given, image=given.picture, source_timestep=timestep)


def generators(geometry: Geometry, pools: tuple[int, ...] = (1, 5)) -> dict[str, Generator]:
    """Build every way of generating a picture, on shared base weights."""
    weights, given = base_weights(geometry), inputs(geometry)
    base = plain(geometry, weights).eval()
    side = given.noise.shape[-1] * SCALE
    # Left alone, it would enlarge every picture to a million pixels.
    kontext = partial(by_diffusers, FluxKontextPipeline, image=given.source, max_area=side**2)
    found = {
        PLAIN_TEXT: Generator(by_diffusers(FluxPipeline, base, given), base),
        KONTEXT: Generator(kontext(base, given), base),
    }
    ways: list[tuple[str, SourceTimestep, int]] = [(CACHED, "zero", experts) for experts in pools]
    for name, timestep, experts in [*ways, (UNCACHED, "same", pools[-1])]:
        model, _ = with_pool(geometry, weights, experts)
        found[f"{name}, N={experts}"] = Generator(by_cologen(model.eval(), given, timestep), model, experts)
    return found


def pictures(
    device: Device, geometry: Geometry, steps: int, found: Mapping[str, Generator], times: Sequence[Times]
) -> list[Picture]:
    """Turn times into rows, and count memory."""
    made, seconds = [], {one.name: one.seconds for one in times}
    for name, values in seconds.items():
        generate, model, experts = found[name]
        weights = sum(value.numel() * value.element_size() for value in model.parameters())
        peak, noise = device.peak_bytes(partial(generate, MEMORY_STEPS)), geometry.side**2
        tokens = {"text": geometry.text, "noise": noise, "source": 0 if name == PLAIN_TEXT else noise}
        memory = {"weights_mib": tidy(weights / MIB), "peak_mib": tidy(peak / MIB)}
        ratios = beside(values, seconds[PLAIN_TEXT]) | {"kontext_ratio": paired(seconds[KONTEXT], values)[0]}
        made.append(Picture(case=name, steps=steps, experts=experts, **tokens, **memory, **ratios))
    return made

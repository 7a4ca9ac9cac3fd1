"""Generates pictures: flow-matching Euler steps on the base's own schedule, the source read at every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import retrieve_timesteps
from diffusers.utils.torch_utils import randn_tensor
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from recipes.cologen.config.model import Shift
from recipes.cologen.errors import ShapeError, SourceStreamError
from recipes.cologen.flux.base import FluxBase, SourceTimestep
from recipes.cologen.flux.shift import scheduler_for
from recipes.cologen.flux.tokens import ImageTokens, TextTokens
from recipes.cologen.flux.two_step import SourceKV

Generators = torch.Generator | list[torch.Generator]
AnySource = ImageTokens | Sequence[ImageTokens] | SourceKV | None


class Sampling(BaseModel):
    """How pictures are generated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: PositiveInt
    """Pixels; a multiple of 2 * vae_scale_factor."""
    width: PositiveInt
    """Pixels; a multiple of 2 * vae_scale_factor."""
    steps: PositiveInt = 28
    """Euler steps."""
    source_timestep: SourceTimestep = "same"
    """`zero` runs the source once for all steps; use what the experts were trained with."""
    guidance: float | None = None
    """Scale for a guidance-distilled base, None for others."""
    true_cfg_scale: float = Field(default=1.0, ge=1, allow_inf_nan=False)
    """Scale of true classifier-free guidance away from a negative prompt; 1 is none."""
    shift: Shift = "base"
    """How the steps are shifted towards noise; `base` is FluxPipeline's way."""


def generate(
    model: FluxBase,
    prompts: list[str] | TextTokens,
    source: Tensor | Sequence[Tensor | ImageTokens] | None = None,
    *,
    generator: Generators | int,
    negative_prompt: str = "",
    **settings: int | float | str | None,
) -> Tensor:
    """Generate one picture per prompt; without a source, what the stock pipeline makes of the same noise.

    Models run in eval mode meanwhile, and are put back as they were.

    Args:
        model: the base, with or without experts.
        prompts: one per picture, or as the text encoders made them.
        source: pixels `[batch, 3, height, width]` in [-1, 1], of any size; several such, if every picture
            has several sources, or as the VAE made them; None for text alone.
        generator: of the starting noise; a list gives each picture its own, so that it does not depend on its
            batch-mates; a number seeds one for all.
        negative_prompt: what is gone away from, of all pictures; read where `true_cfg_scale` is above 1.
        **settings: fields of `Sampling`.

    Returns:
        Pixels `[batch, 3, height, width]` in [-1, 1].

    Raises:
        ShapeError: if a side does not fit the base, or there are not as many sources as prompts.
    """
    sampling = Sampling.model_validate(settings)
    with torch.no_grad(), _evaluating(model):
        text = prompts if isinstance(prompts, TextTokens) else model.encode_prompts(prompts)
        noise = starting_noise(model, len(text.embeds), sampling, generator)
        given = (source,) if isinstance(source, Tensor) else source
        pictures = None if given is None else [_encoded(model, one) for one in given]
        away = None
        if sampling.true_cfg_scale > 1:
            away = _for_all(model.encode_prompts([negative_prompt]), len(text.embeds))
        return model.decode(denoise(model, noise, text, pictures, sampling, away)).clamp(-1, 1)


def _for_all(text: TextTokens, batch: int) -> TextTokens:
    """One prompt's tokens for every picture, without a copy."""
    # [1, text tokens, width] -> [batch, text tokens, width]; [1, width] -> [batch, width]
    return TextTokens(text.embeds.expand(batch, -1, -1), text.pooled.expand(batch, -1))


def _encoded(model: FluxBase, source: Tensor | ImageTokens) -> ImageTokens:
    return source if isinstance(source, ImageTokens) else model.encode_images(source.to(model.device))


def starting_noise(
    model: FluxBase, batch: int, sampling: Sampling, generator: Generators | int
) -> ImageTokens:
    """Sample unit noise in the shape of latents and pack it, as the stock pipeline does.

    Raises:
        ShapeError: if height or width is not a multiple of `2 * vae_scale_factor`.
    """
    scale = model.vae_scale_factor
    if sampling.height % (2 * scale) or sampling.width % (2 * scale):
        raise ShapeError(
            f"height and width must be multiples of {2 * scale} for this base, got "
            f"{sampling.height}x{sampling.width}. Round them."
        )
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    shape = model.latent_shape(batch, sampling.height // (2 * scale), sampling.width // (2 * scale))
    return model.pack(
        randn_tensor(shape, generator=generator, device=model.device, dtype=model.transformer.dtype)
    )


def denoise(
    model: FluxBase,
    noise: ImageTokens,
    text: TextTokens,
    source: AnySource,
    sampling: Sampling,
    negative: TextTokens | None = None,
) -> ImageTokens:
    """Follow the velocity from noise to picture; with `zero`, the source's K and V are computed once.

    Args:
        model: the base.
        noise: where to start.
        text: the prompts.
        source: of every picture; with `zero` also its K and V, as `model.source_kv` made them.
        sampling: how.
        negative: what true guidance goes away from: v = v_negative + scale (v - v_negative), Ho and Salimans
            2022 (arXiv 2207.12598), equation 6, in the form of diffusers' pipelines; None: there is none.

    Raises:
        SourceStreamError: K and V are given, and this base's depend on the prompt, so the negative prompt
            needs its own.
    """
    scheduler, timesteps = _schedule(model, noise.tokens.shape[1], sampling)
    read = _read_source(model, source, text, sampling)
    read_away = read
    if negative is not None and negative.pooled.shape[1]:  # K and V depend on the pooled prompt
        read_away = _read_source(model, source, negative, sampling)
        if isinstance(source, SourceKV):
            raise SourceStreamError(
                "the source's keys and values were given for the prompts alone, and a negative prompt needs "
                "its own with this base: give the source itself."
            )
    tokens = noise.tokens
    for timestep in timesteps:
        # The stock pipelines round the timestep to the tokens' dtype before they divide; so do we, to be
        # equal to the bit.
        fraction = timestep.expand(tokens.shape[0]).to(tokens.dtype) / 1000  # scalar -> [batch]
        given, how = noise.with_tokens(tokens), (sampling.source_timestep, sampling.guidance)
        velocity = model.velocity(given, fraction, text, read, *how)
        if negative is not None:
            away = model.velocity(given, fraction, negative, read_away, *how)
            velocity = away + sampling.true_cfg_scale * (velocity - away)
        tokens = scheduler.step(velocity, timestep, tokens, return_dict=False)[0]
    return noise.with_tokens(tokens)


def _read_source(model: FluxBase, source: AnySource, text: TextTokens, sampling: Sampling) -> AnySource:
    """The source as every step reads it: itself, or with `zero` its K and V."""
    if isinstance(source, ImageTokens | Sequence) and sampling.source_timestep == "zero":
        return model.source_kv(source, text, sampling.guidance)
    return source


def _schedule(
    model: FluxBase, num_tokens: int, sampling: Sampling
) -> tuple[FlowMatchEulerDiscreteScheduler, Tensor]:
    """Give a fresh scheduler of the base's settings and its timesteps, shifted for the picture's size."""
    config, steps = model.scheduler.config, sampling.steps
    scheduler = scheduler_for(config, sampling.shift)
    shift = model.schedule_shift(num_tokens, steps)
    sigmas = None if config.get("use_flow_sigmas", False) else np.linspace(1.0, 1 / steps, steps)
    timesteps, _ = retrieve_timesteps(scheduler, steps, model.device, sigmas=sigmas, mu=shift)
    scheduler.set_begin_index(0)
    return scheduler, timesteps


@contextmanager
def _evaluating(model: FluxBase) -> Iterator[None]:
    """Put every part in eval mode, and afterwards each of their modules back as it was."""
    training = [module for part in model.modules() for module in part.modules() if module.training]
    try:
        for part in model.modules():
            part.eval()
        yield
    finally:
        for module in training:
            module.training = True

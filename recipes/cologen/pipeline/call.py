"""One call of a pipeline, from its request to pictures.

check            refuse what cannot be done
encode_prompts   prompts -> Text [pictures, text tokens, width]
prepare_sources  pictures -> Sources uint8 [height, width, 3], each distinct one once; sources.py
starting_noise   -> latents [pictures, tokens, channels]; flux1.py, flux2.py
denoise          latents -> latents, one velocity per step; denoiser.py
decode           latents -> pictures
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import retrieve_timesteps
from torch import Tensor

from prw import Weave
from prw.errors import PoolError
from recipes.cologen.errors import PromptError, RoutingQuestionError, ShapeError
from recipes.cologen.pipeline.denoiser import Denoiser, SourceBatch, Text, evaluating
from recipes.cologen.pipeline.family import token_side
from recipes.cologen.pipeline.pool import pool_of, refuse_caches, refuse_what_breaks_routing
from recipes.cologen.pipeline.request import Request
from recipes.cologen.pipeline.routing import RoutingRecorder, RoutingTrace
from recipes.cologen.pipeline.sources import PictureRequest, Sources, prepare_sources
from recipes.cologen.pipeline.tasks import check_control, check_task, worded


def run_call(pipe: Any, request: Request) -> tuple[Any, RoutingTrace | None]:
    """Generate what a request asks for.

    Args:
        pipe: The pipeline.
        request: The arguments of its call.

    Returns:
        Pictures in the form that was asked for, and the routing where it was asked for.

    Raises:
        CologenError, PrwError: As `RoutedPipeline.__call__`.
    """
    weave = check(pipe, request)
    stage: AbstractContextManager[None] = nullcontext()
    if weave is not None and (name := request.stage()) is not None:
        stage = weave.as_of(name)
    with evaluating(pipe.transformer), stage:
        return _generate(pipe, request, weave if request.output_routing else None)


def check(pipe: Any, request: Request) -> Weave | None:
    """Refuse what cannot be done, before anything is computed; return the pool."""
    refuse_what_breaks_routing(pipe.transformer)
    refuse_caches(pipe.transformer, request.image is not None and request.source_timestep == "zero")
    weave = pool_of(pipe.transformer)
    experts = () if weave is None else weave.experts
    pipe.family.check(request)
    request.check()
    check_task(request.task, experts)
    check_control(request.task, request.control, request.annotate, pipe.annotators)
    if request.stage() is not None and not experts:
        raise PoolError(
            f"as_of={request.as_of!r} asks for a stage of the pool, and the pipeline has no experts. Load "
            "a pool: pipe.load_pool(path)."
        )
    if request.output_routing and (request.image is None or not experts):
        missing = "no pool" if not experts else "no image"
        raise RoutingQuestionError(
            f"output_routing asks where source tokens went, and there is {missing}: only the tokens of a "
            "source are routed."
        )
    return weave


def _generate(pipe: Any, request: Request, recorded: Weave | None) -> tuple[Any, RoutingTrace | None]:
    family, device, several = pipe.family, pipe._execution_device, request.num_images_per_prompt
    distilled = bool(pipe.transformer.config.guidance_embeds)
    guidance = request.guidance(distilled, pipe.generation.guidance)
    text, negative = encode_prompts(pipe, request, device)
    pictures = text.embeds.shape[0]
    sources, size = _prepared_sources(pipe, request, pictures // several)
    latents, ids = family.starting_noise(request, pictures, size, text.embeds)
    timesteps = _schedule(pipe, request, latents.shape[1], device)
    if sources is not None and request.strength < 1:
        # [prompts, 3, height, width] -> [pictures, tokens, channels]
        start = family.encode(sources.start_pixels, latents).repeat_interleave(several, dim=0)
        latents = pipe.scheduler.scale_noise(start, timesteps[:1].expand(pictures), latents)
    source = None if sources is None else _source_batch(pipe, sources, several, latents)
    denoiser = Denoiser(
        pipe.transformer,
        source,
        source_timestep=request.source_timestep,
        image_ids=ids,
        guidance=guidance,
        attention=request.joint_attention_kwargs or {},
        keep=request.cache_source,
    )
    recorder = None if recorded is None else RoutingRecorder(recorded)
    latents = denoise(pipe, request, denoiser, recorder, latents, timesteps, text, negative)
    images = family.decode(latents, size, request.output_type)
    if recorder is None or source is None or sources is None:
        return images, None
    seen = tuple(sources.groups[place] for place in source.index.tolist())
    return images, recorder.trace(source.grids, seen)


def encode_prompts(pipe: Any, request: Request, device: torch.device) -> tuple[Text, Text | None]:
    """Encode the prompts and, where they are asked for, the negative ones."""
    family, prompts, second = pipe.family, request.prompts(), request.prompt_2
    if request.prompt_embeds is None or (request.has_negative and request.negative_prompt_embeds is None):
        _refuse_without_text_parts(pipe)
    if prompts is not None:
        prompts = [worded(prompt, request.task, request.control) for prompt in prompts]
        second = [
            worded(one, request.task, request.control)
            for one in _each(second, len(prompts), "prompt_2") or ()
        ]
    text = family.encode_text(
        request, device, prompts, second or None, request.prompt_embeds, request.pooled_prompt_embeds
    )
    if not request.has_negative:
        return text, None
    batch = text.embeds.shape[0] // request.num_images_per_prompt
    negative = family.encode_text(
        request,
        device,
        _each(request.negative_prompt, batch, "negative_prompt"),
        _each(request.negative_prompt_2, batch, "negative_prompt_2"),
        request.negative_prompt_embeds,
        request.negative_pooled_prompt_embeds,
    )
    if negative.embeds.shape != text.embeds.shape:
        raise ShapeError(
            f"the negative prompt's embeddings {list(negative.embeds.shape)} have another shape than the "
            f"prompt's {list(text.embeds.shape)}; make both from as many prompts, with one length."
        )
    return text, negative


def denoise(
    pipe: Any,
    request: Request,
    denoiser: Denoiser,
    recorder: RoutingRecorder | None,
    latents: Tensor,
    timesteps: Tensor,
    text: Text,
    negative: Text | None,
) -> Tensor:
    """Follow the velocity from noise to picture: `[pictures, tokens, channels]`, and so back."""
    pipe._num_timesteps = len(timesteps)
    warmup = max(len(timesteps) - request.num_inference_steps * pipe.scheduler.order, 0)
    with pipe.progress_bar(total=-(-len(timesteps) // pipe.scheduler.order)) as bar:
        for number, timestep in enumerate(timesteps):
            if pipe.interrupt:
                continue
            pipe._current_timestep = timestep
            fraction = timestep.expand(latents.shape[0]).to(latents.dtype) / 1000  # [pictures]
            recording = nullcontext() if recorder is None else recorder.step(number, denoiser.rows_decided)
            with recording:
                velocity = denoiser.velocity(latents, fraction, text, "cond")
            if negative is not None:
                away = denoiser.velocity(latents, fraction, negative, "uncond")
                velocity = away + request.true_cfg_scale * (velocity - away)
            dtype = latents.dtype
            latents = pipe.scheduler.step(velocity, timestep, latents, return_dict=False)[0].to(dtype)
            if request.callback_on_step_end is not None:
                tensors = {"latents": latents, "prompt_embeds": text.embeds}
                handed = {name: tensors[name] for name in request.callback_on_step_end_tensor_inputs}
                changed = request.callback_on_step_end(pipe, number, timestep, handed) or {}
                latents = changed.get("latents", latents)
                text = Text(changed.get("prompt_embeds", text.embeds), text.pooled, text.ids)
            last = number == len(timesteps) - 1
            if last or (number + 1 > warmup and (number + 1) % pipe.scheduler.order == 0):
                bar.update()
    pipe._current_timestep = None
    return latents


def _prepared_sources(pipe: Any, request: Request, prompts: int) -> tuple[Sources | None, tuple[int, int]]:
    """The sources of a call, and the height and width of what is generated."""
    annotator = pipe.annotators[request.control] if request.control and request.annotate else None
    pictures = PictureRequest(
        request.image,
        request.mask,
        request.task,
        annotator,
        request.height,
        request.width,
        max_pixels=request.max_pixels,
        run=pipe.generation,
        control=request.control,
        prompts=request.prompts(),
    )
    default = pipe.default_sample_size * pipe.vae_scale_factor
    return prepare_sources(pictures, prompts, token_side(pipe), default)


def _schedule(pipe: Any, request: Request, num_tokens: int, device: torch.device) -> Tensor:
    """Set the scheduler's timesteps, shifted for the picture's size; a strength leaves the last."""
    steps = request.num_inference_steps
    shift = pipe.family.shift(num_tokens, steps)
    sigmas: Any = np.linspace(1.0, 1 / steps, steps) if request.sigmas is None else request.sigmas
    if pipe.scheduler.config.get("use_flow_sigmas", False):
        sigmas = None
    timesteps, steps = retrieve_timesteps(pipe.scheduler, steps, device, sigmas=sigmas, mu=shift)
    first = int(max(steps - min(steps * request.strength, steps), 0)) * pipe.scheduler.order
    pipe.scheduler.set_begin_index(first)
    chosen: Tensor = timesteps[first:]
    return chosen


def _source_batch(pipe: Any, sources: Sources, several: int, like: Tensor) -> SourceBatch:
    """The distinct sources as tokens `[distinct, tokens, channels]`, all places one after the other."""
    index = torch.tensor(sources.index, device=like.device).repeat_interleave(several)  # [pictures]
    side, places = token_side(pipe), sources.pixels
    grids = tuple((pixels.shape[2] // side, pixels.shape[3] // side) for pixels in places)
    tokens = torch.cat([pipe.family.encode(pixels, like) for pixels in places], dim=1)
    return SourceBatch(tokens, pipe.family.source_ids(grids).to(like.device), grids, index)


def _refuse_without_text_parts(pipe: Any) -> None:
    """Refuse to read a prompt where encoders or tokenizers were left out.

    Raises:
        PromptError: Names what is missing.
    """
    text = ("text_encoder", "tokenizer")
    missing = [name for name, part in pipe.components.items() if name.startswith(text) and part is None]
    if missing:
        raise PromptError(
            f"the pipeline has no {', '.join(missing)}, so it cannot read a prompt. Give its "
            "embeddings, which another pipeline's encode_prompt makes (prompt_embeds, "
            "negative_prompt_embeds and, on FLUX.1, the pooled ones), or load the pipeline with its text "
            "encoders."
        )


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

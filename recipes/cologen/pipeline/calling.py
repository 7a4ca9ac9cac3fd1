"""One call of the pipeline, from its arguments to pictures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from prw import Weave
from prw.errors import PoolError
from recipes.cologen.errors import RoutingQuestionError
from recipes.cologen.flux.base import SourceTimestep
from recipes.cologen.pipeline.caches import refuse_caches
from recipes.cologen.pipeline.denoiser import Denoiser, Text, evaluating
from recipes.cologen.pipeline.output import CoLoGenPipelineOutput
from recipes.cologen.pipeline.parts import Parts
from recipes.cologen.pipeline.pool import pool_of, refuse_what_breaks_routing
from recipes.cologen.pipeline.request import Asked, Callback, asked_of
from recipes.cologen.pipeline.routing import RoutingRecorder, RoutingTrace
from recipes.cologen.pipeline.sources import Wanted, prepare_sources
from recipes.cologen.pipeline.tasks import Annotator, check_control, check_task
from recipes.cologen.runs.generation import GenerationSettings


class Calling(Parts):
    """The pipeline's `__call__` and its parts."""

    annotators: dict[str, Annotator]

    @property
    @abstractmethod
    def generation(self) -> GenerationSettings:
        """What a call repeats of the run that trained the experts."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        mask: Any = None,
        task: str | None = None,
        *,
        as_of: bool | str = False,
        control: str | None = None,
        annotate: bool = True,
        prompt_2: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        true_cfg_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        max_pixels: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        source_timestep: SourceTimestep | None = None,
        cache_source: bool = True,
        output_type: str = "pil",
        output_routing: bool = False,
        return_dict: bool = True,
        joint_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int | None = None,
    ) -> CoLoGenPipelineOutput | tuple[Any, ...]:
        """Draw.

        Without `image` this is `FluxPipeline` with the same frozen models, to the bit.

        Args:
            prompt: One, or a list. With a task it is brought to the form that the task was trained on.
            image: The source: PIL, numpy or torch; one for all prompts, or a list with one for each. A list
                in its place gives a prompt several sources, as many as the experts were trained with:
                `[[first, second]]` for one prompt.
            mask: For inpainting: white where to paint; None takes the pure black of `image` as the hole. Mask
                and control map are of the first source; further ones are read as they are.
            task: inpainting, grounding, control, customization, editing, or the name of an expert; None takes
                prompt and picture as they are.
            as_of: True draws with the pool as it was when the task's stage ended, a name with that of this
                stage, False with the whole pool.
            control: Kind of control map, for the control task; it is made of `image` by `annotators`.
            annotate: False if `image` is the map already.
            prompt_2: Prompt of the T5 encoder, if it is another.
            negative_prompt: What to guide away from; needs `true_cfg_scale` above 1. None takes the run's,
                where the run that trained the experts samples with true guidance.
            negative_prompt_2: The same for T5.
            true_cfg_scale: Scale of true classifier-free guidance; 1 is none. None takes the run's, where a
                prompt is given, else 1. Above 1 every step is computed twice.
            height: Pixels, a multiple of 16. None is as training had it for a source of this shape
                (`generation.sizes`); else follows the source in its aspect ratio, or is 1024.
            width: Likewise.
            max_pixels: Of a picture whose size is not asked for, further sources included: a larger one is
                read, and drawn, smaller, whatever the sizes of training. None: 1024 * 1024, as FLUX.1 Kontext
                was trained.
            strength: Below 1, generation starts from `image` with that much noise (image-to-image).
            num_inference_steps: Steps; None takes as many as the run that trained the experts, else 28.
            sigmas: The schedule itself, for schedulers that take it.
            guidance_scale: For guidance-distilled bases; None takes the run's, else 3.5.
            num_images_per_prompt: Pictures for each prompt.
            generator: Of the starting noise; a list has one for each picture.
            latents: The starting noise itself, packed.
            prompt_embeds: T5 embeddings in place of the prompt.
            pooled_prompt_embeds: CLIP's, with them.
            negative_prompt_embeds: In place of the negative prompt.
            negative_pooled_prompt_embeds: With them.
            source_timestep: As the experts were trained; None takes the pipeline's own setting.
            cache_source: With `zero`, False computes source keys and values at every step; to compare.
            output_type: pil, np, pt or latent.
            output_routing: Whether the result has `routing`.
            return_dict: False gives a tuple: the pictures, and the routing if asked for.
            joint_attention_kwargs: `scale`, the strength of adapters.
            callback_on_step_end: Called as `callback(pipe, step, timestep, tensors)` after every step;
                what it returns replaces the tensors. It may set `pipe._interrupt` to stop.
            callback_on_step_end_tensor_inputs: Which tensors it gets: latents, prompt_embeds.
            max_sequence_length: Tokens that a prompt is padded to; None takes as many as the experts were
                trained with, else all that the tokenizer allows, up to 512.

        Returns:
            Pictures, `[prompt 1, prompt 1, ..., prompt 2, ...]`, and the routing.

        Raises:
            CologenError, PrwError: Something was asked for that cannot be done; says what, and what can.
            ValueError: As `FluxPipeline.check_inputs`.
        """
        asked = asked_of(self.generation, locals())
        weave = self._check(asked)
        self._guidance_scale, self._joint_attention_kwargs = guidance_scale, joint_attention_kwargs
        self._interrupt, self._current_timestep = False, None
        stage: AbstractContextManager[None] = nullcontext()
        if weave is not None and (name := asked.stage()) is not None:
            stage = weave.as_of(name)
        with evaluating(self.transformer), stage:
            images, routing = self._draw(asked, weave if output_routing else None)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images, routing) if output_routing else (images,)
        return CoLoGenPipelineOutput(images=images, routing=routing)

    def _check(self, asked: Asked) -> Weave | None:
        """Refuse what cannot be done, before anything is computed; give the pool."""
        refuse_what_breaks_routing(self.transformer)
        refuse_caches(self.transformer, asked.image is not None and asked.source_timestep == "zero")
        weave = pool_of(self.transformer)
        experts = () if weave is None else weave.experts
        self._check_stock(asked)
        asked.check()
        check_task(asked.task, experts)
        check_control(asked.task, asked.control, asked.annotate, self.annotators)
        if asked.stage() is not None and not experts:
            raise PoolError(
                f"as_of={asked.as_of!r} asks for a stage of the pool, and the pipeline has no experts. Load "
                "a pool: pipe.load_pool(path)."
            )
        missing = "no pool" if not experts else "no image"
        if asked.output_routing and (asked.image is None or not experts):
            raise RoutingQuestionError(
                f"output_routing asks where source tokens went, and there is {missing}: only the tokens of a "
                "source are routed."
            )
        return weave

    def _draw(self, asked: Asked, recorded: Weave | None) -> tuple[Any, RoutingTrace | None]:
        device, several = self._execution_device, asked.num_images_per_prompt
        distilled = bool(self.transformer.config.guidance_embeds)
        guidance = asked.guidance(distilled, self.generation.guidance)
        text, negative = self._texts(asked, device)
        pictures = text.embeds.shape[0]
        annotator = self.annotators[asked.control] if asked.control and asked.annotate else None
        wanted = Wanted(
            asked.image,
            asked.mask,
            asked.task,
            annotator,
            asked.height,
            asked.width,
            max_pixels=asked.max_pixels,
            run=self.generation,
            control=asked.control,
            prompts=asked.prompts(),
        )
        default = self.default_sample_size * self.vae_scale_factor
        sources, size = prepare_sources(wanted, pictures // several, self._side, default)
        latents, ids = self._start(asked, pictures, size, text.embeds)
        timesteps = self._schedule(asked, latents.shape[1], device)
        if sources is not None and asked.strength < 1:
            start = self._encode(sources.start_pixels, latents).repeat_interleave(several, dim=0)
            latents = self.scheduler.scale_noise(start, timesteps[:1].expand(pictures), latents)
        source = None if sources is None else self._source_batch(sources, several, latents)
        denoiser = Denoiser(
            self.transformer,
            source,
            source_timestep=asked.source_timestep,
            image_ids=ids,
            guidance=guidance,
            attention=asked.joint_attention_kwargs or {},
            keep=asked.cache_source,
        )
        recorder = None if recorded is None else RoutingRecorder(recorded)
        latents = self._denoise(asked, denoiser, recorder, latents, timesteps, text, negative)
        images = self._decode(latents, size, asked.output_type)
        if recorder is None or source is None or sources is None:
            return images, None
        seen = tuple(sources.groups[place] for place in source.index.tolist())
        return images, recorder.trace(source.grids, seen)

    def _denoise(
        self,
        asked: Asked,
        denoiser: Denoiser,
        recorder: RoutingRecorder | None,
        latents: Tensor,
        timesteps: Tensor,
        text: Text,
        negative: Text | None,
    ) -> Tensor:
        """Follow the velocity from noise to picture."""
        self._num_timesteps = len(timesteps)
        warmup = max(len(timesteps) - asked.num_inference_steps * self.scheduler.order, 0)
        with self.progress_bar(total=-(-len(timesteps) // self.scheduler.order)) as bar:
            for number, timestep in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = timestep
                fraction = timestep.expand(latents.shape[0]).to(latents.dtype) / 1000
                recording = (
                    nullcontext() if recorder is None else recorder.step(number, denoiser.rows_decided)
                )
                with recording:
                    velocity = denoiser.velocity(latents, fraction, text, "cond")
                if negative is not None:
                    away = denoiser.velocity(latents, fraction, negative, "uncond")
                    velocity = away + asked.true_cfg_scale * (velocity - away)
                dtype = latents.dtype
                latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0].to(dtype)
                if asked.callback_on_step_end is not None:
                    tensors = {"latents": latents, "prompt_embeds": text.embeds}
                    handed = {name: tensors[name] for name in asked.callback_on_step_end_tensor_inputs}
                    changed = asked.callback_on_step_end(self, number, timestep, handed) or {}
                    latents = changed.get("latents", latents)
                    text = Text(changed.get("prompt_embeds", text.embeds), text.pooled, text.ids)
                last = number == len(timesteps) - 1
                if last or (number + 1 > warmup and (number + 1) % self.scheduler.order == 0):
                    bar.update()
        self._current_timestep = None
        return latents

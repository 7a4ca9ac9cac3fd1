"""The request of a call, and the checks of it that need no computation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipes.cologen.errors import GuidanceError, PictureError, PromptError, SourceStreamError
from recipes.cologen.flux.base import SourceTimestep
from recipes.cologen.runs.generation import GenerationSettings

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
NEGATIVES = (
    "negative_prompt",
    "negative_prompt_2",
    "negative_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
"""Arguments of a call that say what to guide away from."""
Callback = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
"""Called as `callback(pipe, step, timestep, tensors)`; gives back the tensors that it changed."""


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of `CoLoGenPipeline.__call__`, which says what each means."""

    prompt: str | list[str] | None
    image: Any
    mask: Any
    task: str | None
    as_of: bool | str
    control: str | None
    annotate: bool
    prompt_2: str | list[str] | None
    negative_prompt: str | list[str] | None
    negative_prompt_2: str | list[str] | None
    true_cfg_scale: float
    height: int | None
    width: int | None
    max_pixels: int | None
    strength: float
    num_inference_steps: int
    sigmas: list[float] | None
    guidance_scale: float | None
    num_images_per_prompt: int
    generator: torch.Generator | list[torch.Generator] | None
    latents: Tensor | None
    prompt_embeds: Tensor | None
    pooled_prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None
    negative_pooled_prompt_embeds: Tensor | None
    source_timestep: SourceTimestep
    cache_source: bool
    output_type: str
    output_routing: bool
    return_dict: bool
    joint_attention_kwargs: dict[str, Any] | None
    callback_on_step_end: Callback | None
    callback_on_step_end_tensor_inputs: Sequence[str]
    max_sequence_length: int | None

    @property
    def has_negative(self) -> bool:
        """Whether there is something to guide away from."""
        return self.negative_prompt is not None or self.negative_prompt_embeds is not None

    def prompts(self) -> list[str] | None:
        """One prompt for each source or, with embeddings, None; one prompt for many pictures is repeated.

        Raises:
            PromptError: There is no prompt, or it is of another kind.
        """
        if isinstance(self.prompt, str):
            return [self.prompt] * _how_many(self.image)
        if isinstance(self.prompt, list) and self.prompt and all(isinstance(one, str) for one in self.prompt):
            return self.prompt
        if self.prompt is None and self.prompt_embeds is not None:
            return None
        raise PromptError(
            "expected a prompt, a list of prompts, or prompt_embeds with pooled_prompt_embeds; got "
            f"{self.prompt!r:.80}."
        )

    def guidance(self, distilled: bool, usual: float) -> float | None:
        """The scale for a guidance-distilled base, None for others.

        Args:
            distilled: Whether the base reads a scale.
            usual: The scale where none is given.

        Raises:
            GuidanceError: A scale is given that would do nothing.
        """
        scale, true_cfg = self.guidance_scale, self.true_cfg_scale
        if scale is not None and not distilled:
            raise GuidanceError(
                f"guidance_scale={scale} would do nothing: this base has no guidance embedding. Leave it "
                "out, or use true_cfg_scale with a negative_prompt."
            )
        if true_cfg > 1 and not self.has_negative:
            raise GuidanceError(
                f"true_cfg_scale={true_cfg} needs a negative_prompt to guide away from; an empty one will "
                'do: negative_prompt="".'
            )
        if self.has_negative and true_cfg <= 1:
            raise GuidanceError(
                f"the negative prompt would do nothing with true_cfg_scale={true_cfg}; give a scale above 1."
            )
        return (usual if scale is None else scale) if distilled else None

    def stage(self) -> str | None:
        """The stage whose pool is to generate; None for all of the pool.

        Raises:
            PromptError: The task's own stage is asked for, and there is no task.
        """
        if self.as_of is True:
            if self.task is None:
                raise PromptError('as_of=True means the stage of the task: give task, or as_of="STAGE".')
            return self.task
        return self.as_of or None

    def check(self) -> None:
        """Refuse an output type, a strength, a number of steps or attention arguments that cannot be.

        Raises:
            PictureError, SourceStreamError: Says which, and what is possible.
        """
        steps, strength = self.num_inference_steps, self.strength
        if self.output_type not in OUTPUT_TYPES:
            raise PictureError(f"output_type is one of {', '.join(OUTPUT_TYPES)}; got {self.output_type!r}.")
        if not 0 < strength <= 1:
            raise PictureError(f"strength lies above 0 and up to 1 (1: from noise alone); got {strength}.")
        if strength < 1 and (self.image is None or self.latents is not None):
            raise PictureError(
                f"strength={strength} starts from a picture with noise on it: give image, and no latents."
            )
        if int(steps * strength) < 1:
            raise PictureError(
                f"strength={strength} of {steps} steps leaves no step to take; raise one of them."
            )
        unknown = sorted(set(self.joint_attention_kwargs or {}) - {"scale"})
        if unknown:
            raise SourceStreamError(
                f"joint_attention_kwargs {unknown} would be passed over: the source stream's processors read "
                "nothing beside `scale`, the strength of adapters."
            )


def request_of(run: GenerationSettings, arguments: Mapping[str, Any]) -> Request:
    """A call whose arguments, where they are None, are as in the run that trained the experts.

    The guidance scale may stay None, since not every base reads one; see `Request.guidance`.

    Args:
        run: What the run fixes for generation.
        arguments: Of the call, by name; those that `Request` does not have are left out.
    """
    usual: dict[str, Any] = {
        "num_inference_steps": run.steps,
        "source_timestep": run.source_timestep,
        "max_sequence_length": run.max_text_tokens,
        "true_cfg_scale": 1.0,
    }
    if run.true_cfg_scale > 1:
        # Who gives embeddings may have no text encoder, so guidance by a prompt is theirs to ask for.
        if arguments["prompt"] is not None:
            usual["true_cfg_scale"] = run.true_cfg_scale
        given_scale = arguments["true_cfg_scale"]
        scale = usual["true_cfg_scale"] if given_scale is None else given_scale
        if scale > 1 and all(arguments[name] is None for name in NEGATIVES):
            usual["negative_prompt"] = run.negative_prompt
    given = {name: arguments[name] for name in Request.__dataclass_fields__}
    filled: dict[str, Any] = {
        name: usual.get(name) if value is None else value for name, value in given.items()
    }
    return Request(**filled)


def _how_many(image: Any) -> int:
    if isinstance(image, list | tuple):
        return len(image)
    return int(image.shape[0]) if getattr(image, "ndim", 0) == 4 else 1

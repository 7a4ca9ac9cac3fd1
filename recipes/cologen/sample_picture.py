"""Makes ready and samples one picture with a loaded model: the one place where commands and page draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from recipes.cologen.config import RunConfig
from recipes.cologen.config_training import SamplingSettings
from recipes.cologen.data.control import PROMPTS
from recipes.cologen.data.record import Image
from recipes.cologen.data.scene import SIDE
from recipes.cologen.errors import GuidanceError, PictureError
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.flux.shift import scheduler_for
from recipes.cologen.picture_settings import PictureSettings
from recipes.cologen.pictures import cut_hole, fit_picture
from recipes.cologen.pipeline import pipeline_over


def sample_picture(
    model: FluxBase,
    settings: RunConfig,
    wanted: PictureSettings,
    sources: Sequence[Image],
    *,
    progress: bool = False,
) -> Image:
    """Draw a picture with the pool as the model holds it now; `wanted.pool` is not looked at.

    Args:
        model: The base, with or without its pool.
        settings: Of the run that the pool is from.
        wanted: What is asked for.
        sources: One, or several where the run was trained on several; uint8 [height, width, 3], one size.
            For inpainting the hole is black in it.
        progress: Whether a bar is drawn, on terminals.

    Raises:
        GuidanceError: A scale is given, and the base reads none.
    """
    guidance = _guidance(wanted.guidance, settings.sampling.guidance, model)
    pipe = pipeline_over(model, settings.flow.source_timestep)
    pipe.scheduler = scheduler_for(model.scheduler.config, settings.sampling.shift)
    pipe.set_progress_bar_config(disable=None if progress else True)  # None: where there is no terminal
    (images,) = pipe(
        wanted.prompt,
        [list(sources)],
        task=wanted.task,
        generator=torch.Generator().manual_seed(wanted.seed),
        num_inference_steps=wanted.steps,
        return_dict=False,
        guidance_scale=guidance,
        **_true_guidance(settings.sampling),
        max_sequence_length=model.max_text_tokens,
    )
    return np.asarray(images[0])


def _guidance(given: float | None, usual: float, model: FluxBase) -> float | None:
    if model.reads_guidance:
        return usual if given is None else given
    if given is not None:
        raise GuidanceError("this base reads no guidance scale; leave guidance out.")
    return None


def _true_guidance(sampling: SamplingSettings) -> dict[str, Any]:
    """What the pipeline takes for true guidance; nothing where a run draws without."""
    if sampling.true_cfg_scale == 1:
        return {}
    return {"true_cfg_scale": sampling.true_cfg_scale, "negative_prompt": sampling.negative_prompt}


def size_to_draw(settings: RunConfig, model: FluxBase, picture: Image) -> tuple[int, int]:
    """Height and width to draw at: those of training, else the picture's own in whole tokens."""
    data = settings.data
    if data.source == "world":
        return SIDE, SIDE
    if data.size is not None:
        return data.size
    side = 2 * model.vae_scale_factor
    height, width = (max(side, length // side * side) for length in picture.shape[:2])
    return height, width


class Source(NamedTuple):
    """What the model gets to see, and what had to be said about that."""

    image: Image
    notices: tuple[str, ...]


def source_of(
    model: FluxBase,
    settings: RunConfig,
    task: str,
    prompt: str,
    image: Image,
    mask: Image | None = None,
    *,
    kind: str | None = None,
    names: tuple[str, str] = ("the picture", "the mask"),
) -> Source:
    """Bring a picture to what the model reads: its size, and for inpainting its hole.

    Args:
        model: The base.
        settings: Of the run.
        task: What is asked of the source.
        prompt: As the user wrote it.
        image: uint8 [any height, any width, 3].
        mask: For inpainting, of the same form: bright where to paint; None when the hole is black already.
        kind: For control, of the map, where it is known.
        names: What notices call picture and mask.

    Raises:
        PictureError: There is no hole, nothing but a hole, or a mask for another task.
    """
    if mask is not None and task != "inpainting":
        raise PictureError(f"a mask is for inpainting; {task} reads the whole picture.")
    size = size_to_draw(settings, model, image)
    fitted = fit_picture(image, *size, name=names[0])
    hole = None if mask is None else fit_picture(mask, *size, name=names[1])
    notices = [fitted.notice, None if hole is None else hole.notice]
    if task == "control":
        notices.append(map_notice(prompt, kind))
    seen = fitted.image
    if task == "inpainting":
        seen = cut_hole(seen, None if hole is None else hole.image)
    return Source(seen, tuple(notice for notice in notices if notice is not None))


def map_notice(prompt: str, kind: str | None = None) -> str | None:
    """What to say of a control prompt that does not begin as those of training; None if it does.

    Args:
        prompt: As the user wrote it.
        kind: Of the map, where it is known.
    """
    said = next((words for words in PROMPTS.values() if prompt.startswith(words)), None)
    if said is not None:
        if kind is None or PROMPTS[kind] == said:
            return None
        return f'the map is {kind} ("{PROMPTS[kind]}"), but the prompt begins with "{said}".'
    kinds = ", ".join(f'"{words}"' for words in PROMPTS.values())
    return f"control was trained on prompts that begin with the kind of map: {kinds}."

"""Samples one picture with a loaded model: the one place where commands and page generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from recipes.cologen.config.run import RunConfig
from recipes.cologen.data.control import PROMPTS
from recipes.cologen.data.picture_files import cut_hole, fit_picture
from recipes.cologen.data.record import Image
from recipes.cologen.errors import GuidanceError, PictureError
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.generation.settings import PictureSettings, height_and_width
from recipes.cologen.pipeline import pipeline_over
from recipes.cologen.pipeline.pixels import MAX_PIXELS, own_size
from recipes.cologen.pipeline.tasks import shows_classes
from recipes.cologen.runs.generation import generation_settings


def sample_picture(
    model: FluxBase,
    settings: RunConfig,
    wanted: PictureSettings,
    sources: Sequence[Image],
    *,
    progress: bool = False,
) -> Image:
    """Generate a picture with the pool as the model holds it now; `wanted.pool` is not looked at.

    Args:
        model: The base, with or without its pool.
        settings: Of the run that the pool is from.
        wanted: What is asked for.
        sources: One, or several where the run was trained on several; uint8 [height, width, 3], one size.
            For inpainting the hole is black in it.
        progress: Whether a bar is shown, on terminals.

    Raises:
        GuidanceError: A scale is given, and the base reads none.
    """
    generation = generation_settings(settings)
    guidance = _guidance(wanted.guidance, generation.guidance, model)
    pipe = pipeline_over(model, generation)
    pipe.set_progress_bar_config(disable=None if progress else True)  # None: where there is no terminal
    (images,) = pipe(
        wanted.prompt,
        [list(sources)],
        task=wanted.task,
        generator=torch.Generator().manual_seed(wanted.seed),
        num_inference_steps=wanted.steps,
        return_dict=False,
        guidance_scale=guidance,
        height=sources[0].shape[0],
        width=sources[0].shape[1],
        max_sequence_length=model.max_text_tokens,
    )
    return np.asarray(images[0])


def _guidance(given: float | None, usual: float, model: FluxBase) -> float | None:
    if model.reads_guidance:
        return usual if given is None else given
    if given is not None:
        raise GuidanceError("this base reads no guidance scale; leave guidance out.")
    return None


def size_to_draw(
    settings: RunConfig, model: FluxBase, picture: Image, size: str | None = None
) -> tuple[int, int]:
    """Height and width to generate at.

    As `size` says; else what training gave pictures of this shape; else the picture's own, in whole tokens
    and of at most `MAX_PIXELS` pixels.

    Args:
        settings: Of the run.
        model: The base.
        picture: The source, uint8 [any height, any width, 3].
        size: WIDTHxHEIGHT.

    Raises:
        PictureError: A side that was asked for is no whole number of tokens.
    """
    side = 2 * model.vae_scale_factor
    height, width = picture.shape[:2]
    if size is None:
        return generation_settings(settings).size_of(height, width) or own_size(height, width, side)
    lengths = height_and_width(size)
    if any(length % side for length in lengths):
        near = "x".join(str(max(side, round(length / side) * side)) for length in reversed(lengths))
        raise PictureError(
            f"the sides of a size are multiples of {side} for this base, got {size}. Try --size {near}."
        )
    return lengths


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
    is_photo: bool = False,
    size: str | None = None,
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
            One of another size is stretched over the picture.
        kind: For control, of the map, where it is known.
        is_photo: Whether that map is still to be made of the picture.
        size: Asked for, WIDTHxHEIGHT; None as `size_to_draw`.
        names: What notices call picture and mask.

    Raises:
        PictureError: There is no hole, nothing but a hole, a mask for another task, or a size that cannot
            be.
    """
    if mask is not None and task != "inpainting":
        raise PictureError(f"a mask is for inpainting; {task} reads the whole picture.")
    wanted = size_to_draw(settings, model, image, size)
    fitted = fit_picture(
        image, *wanted, name=names[0], classes=not is_photo and shows_classes(task, kind, prompt)
    )
    notices = [fitted.notice, _most_notice(settings, image, size)]
    if mask is not None and not _have_one_shape(mask, image):
        notices.append(
            f"{names[1]} is {mask.shape[1]}x{mask.shape[0]} pixels; it was stretched over {names[0]}."
        )
    if task == "control":
        notices.append(map_notice(prompt, kind))
    seen = cut_hole(image, mask, wanted) if task == "inpainting" else fitted.image
    return Source(seen, tuple(notice for notice in notices if notice is not None))


def _have_one_shape(one: Image, other: Image) -> bool:
    """Whether two pictures have the same proportions, but for a rounding to whole pixels."""
    across, down = (one.shape[axis] / other.shape[axis] for axis in (1, 0))
    return bool(abs(across / down - 1) < 0.02)


def _most_notice(settings: RunConfig, image: Image, size: str | None) -> str | None:
    """What to say where a picture is generated smaller than it is because it has too many pixels."""
    height, width = image.shape[:2]
    if size is not None or generation_settings(settings).sizes or height * width <= MAX_PIXELS:
        return None
    return f"at most {MAX_PIXELS} pixels are generated where no size is asked for; ask for one (--size WxH)."


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

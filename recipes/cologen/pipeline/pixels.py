"""Pictures as users hand them over (PIL, numpy, torch) as uint8 arrays of one size, and that size itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as PilImage
from PIL import ImageOps

from recipes.cologen.data.framing import frame_of, resized_pixels
from recipes.cologen.data.reading import mask_of, opaque
from recipes.cologen.data.record import Image, Mask
from recipes.cologen.errors import PictureError, ShapeError

MAX_PIXELS = 1024**2
"""Most pixels of a picture for which no size is asked: the area that FLUX.1 Kontext was trained on."""


def listed(pictures: Any, batch: int, what: str) -> list[Any]:
    """One object for each prompt, from one picture for all or a list; a batch of arrays is a list too.

    Raises:
        PictureError: It is no picture, there are not as many as prompts, or one prompt has several.
    """
    given = _each_prompts(pictures, batch, what)
    if any(isinstance(one, list | tuple) for one in given):
        raise PictureError(
            f"{what}: one prompt has one {what}, which belongs to its first source. Give a flat list, one "
            "for each prompt."
        )
    return given


def grouped(pictures: Any, batch: int, what: str) -> list[tuple[PilImage.Image, ...]]:
    """The pictures of each prompt: one, or as many as the list has that is given in its place.

    Raises:
        PictureError: Something is no picture, there are not as many as prompts, or prompts have different
            numbers of pictures.
    """
    given = _each_prompts(pictures, batch, what)
    groups = [tuple(one) if isinstance(one, list | tuple) else (one,) for one in given]
    counts = sorted({len(group) for group in groups})
    if len(counts) > 1 or 0 in counts:
        raise PictureError(
            f"{what}: every prompt of a call has as many pictures as the others, and one at least; got "
            f"{', '.join(str(len(group)) for group in groups)}. Generate the others in a call of their own."
        )
    made = _made([one for group in groups for one in group], what)
    return [tuple(made[id(one)] for one in group) for group in groups]


def _made(given: Sequence[Any], what: str) -> dict[int, PilImage.Image]:
    """Each object as a picture, once, by its identity: the same object twice stays one picture."""
    return {key: as_picture(one, what) for key, one in {id(one): one for one in given}.items()}


def _each_prompts(pictures: Any, batch: int, what: str) -> list[Any]:
    if isinstance(pictures, np.ndarray | torch.Tensor) and pictures.ndim == 4:
        pictures = list(pictures)
    if not isinstance(pictures, list | tuple):
        return [pictures] * batch
    if len(pictures) != batch:
        nested = any(isinstance(one, list | tuple) for one in pictures)
        hint = "" if nested or batch > 1 else " Several for the one prompt are a list in a list: [[a, b]]."
        raise PictureError(
            f"{what}: got {len(pictures)} pictures for {batch} prompts. Give one for all, or one for "
            f"each.{hint}"
        )
    return list(pictures)


def as_picture(picture: Any, what: str) -> PilImage.Image:
    """Turn one picture into an upright PIL picture of 8 bits: RGB; what is transparent in it is white.

    Args:
        picture: PIL; or numpy [height, width] or [height, width, channels]; or torch [channels, height,
            width]. Whole numbers count from 0 to 255, floats from 0 to 1.
        what: What messages call it.

    Raises:
        PictureError: It is none of these, or its values are out of range.
    """
    return opaque(_as_pil(picture, what)).picture


def as_mask(picture: Any, what: str) -> Mask:
    """Turn one mask into booleans [height, width], as masks of training data are read.

    Args:
        picture: As for `as_picture`.
        what: What messages call it.

    Raises:
        PictureError: as `as_picture`.
    """
    return mask_of(_as_pil(picture, what))


def _as_pil(picture: Any, what: str) -> PilImage.Image:
    if isinstance(picture, PilImage.Image):
        return ImageOps.exif_transpose(picture)
    if isinstance(picture, torch.Tensor):
        if picture.ndim != 3:
            raise _not_a_picture(what, f"a tensor of shape {list(picture.shape)}")
        moved = picture.detach().to("cpu").movedim(0, -1)
        picture = (moved.float() if moved.is_floating_point() else moved).numpy()
    if not isinstance(picture, np.ndarray):
        raise _not_a_picture(what, type(picture).__name__)
    values = picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] != 3) or 0 in values.shape:
        raise _not_a_picture(what, f"an array of shape {list(picture.shape)}")
    if values.dtype.kind == "b":
        values = values * np.uint8(255)
    elif values.dtype.kind == "f":
        values = _bytes_of(values, what)
    elif values.dtype != np.uint8:
        raise _not_a_picture(what, f"an array of {values.dtype}")
    return PilImage.fromarray(np.ascontiguousarray(values)).convert("RGB")


def _bytes_of(values: np.ndarray, what: str) -> np.ndarray:
    # A pixel of a picture that was decoded may lie a rounding beside its range.
    if not np.isfinite(values).all() or values.min() < -1e-3 or values.max() > 1 + 1e-3:
        raise _not_a_picture(what, f"floats from {values.min():.3g} to {values.max():.3g}")
    levels: np.ndarray = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    return levels


def _not_a_picture(what: str, found: str) -> PictureError:
    return PictureError(
        f"{what}: expected a PIL picture, a numpy array [height, width, 3] or a tensor [3, height, width], "
        f"of uint8 or of floats from 0 to 1; got {found}."
    )


def chosen_size(
    height: int | None,
    width: int | None,
    picture: PilImage.Image | None,
    side: int,
    default: int,
    most: int = MAX_PIXELS,
) -> tuple[int, int]:
    """Height and width to generate at: as asked, else as the source is, in whole tokens.

    Args:
        height: As asked; None follows the source's aspect ratio.
        width: As asked, likewise.
        picture: The first source; None without one.
        side: Pixels that a token covers: 16 with FLUX's own VAE.
        default: Side of a picture without source.
        most: Pixels of a picture for which neither is asked.

    Raises:
        ShapeError: A side that was asked for is no positive multiple of `side`.
    """
    for name, value in (("height", height), ("width", width)):
        if value is not None and (value <= 0 or value % side):
            near = max(side, round(value / side) * side)
            raise ShapeError(f"{name} must be a multiple of {side} for this base, got {value}; try {near}.")
    if picture is None:
        return height or default, width or default
    own_width, own_height = picture.size
    if height is None and width is None:
        return own_size(own_height, own_width, side, most)
    if height is None:
        height = _whole(own_height * (width or 0) / own_width, side)
    return height, width or _whole(own_width * height / own_height, side)


def own_size(height: int, width: int, side: int, most: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of a picture in whole tokens, scaled down in its shape to at most `most` pixels.

    Args:
        height: Its own.
        width: Its own.
        side: Pixels that a token covers.
        most: Pixels of the result, one token at least.
    """
    rows, columns = _whole(height, side), _whole(width, side)
    if rows * columns <= most:
        return rows, columns
    scale = min(1.0, math.sqrt(most / (height * width)))
    rows, columns = (max(side, int(scale * length) // side * side) for length in (height, width))
    # Of a very long picture the short side is one token, which leaves less for the long one.
    longest = max(side, most // min(rows, columns) // side * side)
    return min(rows, longest), min(columns, longest)


def _whole(length: float, side: int) -> int:
    return max(side, round(length / side) * side)


def fitted(picture: PilImage.Image, size: tuple[int, int], *, classes: bool = False) -> Image:
    """A picture at (height, width) as in training: scaled to cover it, the middle kept.

    Args:
        picture: RGB, of any size.
        size: Height and width.
        classes: Whether its colours stand for classes, as in `resized_pixels`.
    """
    return resized_pixels(picture, frame_of(picture.size, size), classes=classes)


def in_unit_range(images: Sequence[Image]) -> torch.Tensor:
    """Pictures of one size as float32 `[batch, 3, height, width]` in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def distinct(groups: Sequence[tuple[Image, ...]]) -> tuple[list[tuple[Image, ...]], list[int]]:
    """Groups of pictures without repetition, and which of them each one is."""
    places: dict[tuple[bytes, ...], int] = {}
    kept: list[tuple[Image, ...]] = []
    index = []
    for group in groups:
        key = tuple(image.tobytes() for image in group)
        if key not in places:
            places[key] = len(kept)
            kept.append(group)
        index.append(places[key])
    return kept, index

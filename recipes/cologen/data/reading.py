"""The one way in which pictures and masks are read: what is transparent, and what counts as painted.

Training's records, `generate`, the page and the pipelines all read here, so a file gives one result.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from recipes.cologen.data.decoding import as_rgb, decoding, is_deep
from recipes.cologen.data.record import Image, Mask


class Opaque(NamedTuple):
    """A picture without transparency."""

    picture: PilImage.Image
    """RGB, 8 bits a channel."""
    was_transparent: bool
    """Whether any of the background is seen."""


def opaque(picture: PilImage.Image, background: str = "white") -> Opaque:
    """Lay a decoded picture on a background, so that no colour that hides under transparency is seen.

    Args:
        picture: Of any mode; one without transparent parts keeps its own colours, exactly.
        background: Name of the colour behind.

    Raises:
        BrokenPictureError: Its pixels cannot be decoded, or its colours cannot be converted.
    """
    with decoding():
        return _laid(picture, background)


def _laid(picture: PilImage.Image, background: str) -> Opaque:
    if not picture.has_transparency_data:
        return Opaque(as_rgb(picture), False)
    if is_deep(picture):  # one gray level is named transparent; `convert` would cut the others off at 255
        colours = as_rgb(picture)
        seen = np.asarray(picture) != picture.info["transparency"]
        alpha = PilImage.fromarray(np.where(seen, 255, 0).astype(np.uint8))
    else:
        layered = picture.convert("RGBA")
        colours, alpha = layered.convert("RGB"), layered.getchannel("A")
    laid = PilImage.composite(colours, PilImage.new("RGB", picture.size, background), alpha)
    return Opaque(laid, alpha.getextrema() != (255, 255))


def mask_of(picture: PilImage.Image) -> Mask:
    """Read a decoded picture as a mask of its own size.

    True where it is brighter than half of its brightest point (the mean of red, green and blue), so a mask
    of 0 and 1 is read like one of 0 and 255, and what JPEG adds around an edge is not. What is transparent
    counts as black.

    Raises:
        BrokenPictureError: As `opaque`.
    """
    if is_deep(picture):
        levels = np.nan_to_num(np.asarray(picture, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        if picture.has_transparency_data:
            levels = np.where(np.asarray(picture) == picture.info["transparency"], 0.0, levels)
        return bright(levels[..., None])
    return bright(np.asarray(opaque(picture, "black").picture))


def bright(levels: NDArray[np.generic]) -> Mask:
    """Where the mean over channels (the last axis) is above half of the largest; nowhere if all are 0."""
    brightness = levels.mean(axis=-1)
    mask: Mask = brightness > brightness.max() / 2
    return mask


def as_picture_of(mask: Mask) -> Image:
    """A mask as a picture uint8 [height, width, 3]: white where it is true, else black."""
    return np.where(mask, 255, 0).astype(np.uint8)[..., None].repeat(3, axis=-1)

"""Decodes picture files: upright, and as 8-bit RGB whatever they hold; the one way pictures come in."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image as PilImage
from PIL import ImageOps

_EXIF_ORIENTATION = 0x0112
_USUAL_TOP = {"I": 65535.0, "F": 1.0}
"""White in a gray picture of more than 8 bits, by the first letter of PIL's mode: `I`, `I;16`, `F` ..."""


def open_upright(path: Path | BinaryIO) -> PilImage.Image:
    """A picture as its file holds it, decoded and turned the way its EXIF data says.

    Raises:
        OSError, SyntaxError: The file is missing or broken, or no picture (PIL reports some broken PNGs as
            SyntaxError).
        PIL.Image.DecompressionBombError: It claims to be larger than PIL decodes.
    """
    with PilImage.open(path) as opened:
        return ImageOps.exif_transpose(opened)


def upright_stand_in(path: Path | BinaryIO) -> PilImage.Image:
    """A black picture of the size that `open_upright` would give, from the file's header alone.

    Raises:
        OSError, SyntaxError: The file is missing, or no picture.
    """
    with PilImage.open(path) as opened:
        return PilImage.new("L", upright_size(opened))


def upright_size(picture: PilImage.Image) -> tuple[int, int]:
    """(width, height) once the picture is turned the way its EXIF data says."""
    width, height = picture.size
    # The method of the base class: that of PNG pictures would decode all pixels to look for late EXIF chunks.
    lies = PilImage.Image.getexif(picture).get(_EXIF_ORIENTATION, 1) >= 5
    return (height, width) if lies else (width, height)


def is_deep(picture: PilImage.Image) -> bool:
    """Whether a picture is gray with more than 8 bits a pixel: 16 or 32 bits, or float."""
    return picture.mode[0] in _USUAL_TOP


def as_rgb(picture: PilImage.Image) -> PilImage.Image:
    """A picture with 8 bits for red, green and blue.

    PIL's own `convert` cuts deeper values off at 255, which leaves black and white. Here whole numbers from 0
    to 65535 and floats from 0 to 1 are scaled to 0 to 255; a picture with other values is stretched, its
    lowest to black and its highest to white. A float that is no finite number counts as 0.
    """
    if not is_deep(picture):
        return picture.convert("RGB")
    values = np.nan_to_num(np.asarray(picture, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = 0.0, _USUAL_TOP[picture.mode[0]]
    if values.min() < low or values.max() > high:
        low, high = float(values.min()), float(values.max())
    # One value alone, out of the usual range, has nothing to be told apart from; 1 keeps the division whole.
    levels = np.rint(255 * (values - low) / ((high - low) or 1.0)).astype(np.uint8)
    return PilImage.fromarray(levels).convert("RGB")

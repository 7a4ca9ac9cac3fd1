"""Decodes picture files: upright, and as 8-bit RGB whatever they hold; the one way pictures come in.

Whatever is wrong with a file, these functions raise one error: `BrokenPictureError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image as PilImage
from PIL import ImageOps

from recipes.cologen.errors import BrokenPictureError

_EXIF_ORIENTATION = 0x0112
_LYING = (5, 6, 7, 8)
"""Orientations that make columns of rows. Others are none, such as one that is given as a text."""
_USUAL_TOP = {"I": 65535.0, "F": 1.0}
"""White in a gray picture of more than 8 bits, by the first letter of PIL's mode: `I`, `I;16`, `F` ..."""


@contextmanager
def decoding() -> Iterator[None]:
    """Turn whatever PIL raises inside into the one error for a picture that cannot be read.

    Raises:
        BrokenPictureError: Says what is wrong with the file, in PIL's words.
    """
    try:
        yield
    except MemoryError:  # says nothing about the picture
        raise
    except PilImage.DecompressionBombError as error:
        most = 2 * (PilImage.MAX_IMAGE_PIXELS or 0)
        raise BrokenPictureError(
            f"it has too many pixels; at most {most / 1e6:.0f} million are read"
        ) from error
    # PIL's decoders and EXIF readers raise whatever their parsing runs into: OSError, SyntaxError, EOFError,
    # ValueError, TypeError, KeyError, struct.error, zlib.error ...
    except Exception as error:
        raise BrokenPictureError(str(error) or type(error).__name__) from error


def open_upright(path: Path | BinaryIO) -> PilImage.Image:
    """A picture as its file holds it, decoded and turned the way its EXIF data says.

    Raises:
        BrokenPictureError: The file is missing or broken, no picture, or larger than PIL decodes.
    """
    with decoding(), PilImage.open(path) as opened:
        return ImageOps.exif_transpose(opened)


def stored_size(path: Path | BinaryIO) -> tuple[int, int]:
    """(width, height) of a picture once it is turned upright, from the file's header alone.

    Raises:
        BrokenPictureError: As `open_upright`, as far as the header shows.
    """
    with decoding(), PilImage.open(path) as opened:
        return upright_size(opened)


def upright_stand_in(path: Path | BinaryIO) -> PilImage.Image:
    """A black picture of the size that `open_upright` would give, from the file's header alone.

    Raises:
        BrokenPictureError: As `stored_size`.
    """
    return PilImage.new("L", stored_size(path))


def upright_size(picture: PilImage.Image) -> tuple[int, int]:
    """(width, height) once the picture is turned the way its EXIF data says."""
    width, height = picture.size
    # The method of the base class: that of PNG pictures would decode all pixels to look for late EXIF chunks.
    lies = PilImage.Image.getexif(picture).get(_EXIF_ORIENTATION) in _LYING
    return (height, width) if lies else (width, height)


def is_deep(picture: PilImage.Image) -> bool:
    """Whether a picture is gray with more than 8 bits a pixel: 16 or 32 bits, or float."""
    return picture.mode[0] in _USUAL_TOP


def as_rgb(picture: PilImage.Image) -> PilImage.Image:
    """A picture with 8 bits for red, green and blue.

    PIL's own `convert` cuts deeper values off at 255, which leaves black and white. Here whole numbers from 0
    to 65535 and floats from 0 to 1 are scaled to 0 to 255; a picture with other values is stretched, its
    lowest to black and its highest to white. A float that is no finite number counts as the lowest value, and
    stretches nothing.

    Raises:
        BrokenPictureError: Its pixels cannot be decoded, its colours cannot be converted, or none of its
            values is a finite number.
    """
    if not is_deep(picture):
        with decoding():
            return picture.convert("RGB")
    with decoding():
        values = np.asarray(picture, dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise BrokenPictureError(f"none of its {values.size} pixels is a finite number; save it anew")
    low, high = 0.0, _USUAL_TOP[picture.mode[0]]
    least, most = float(values[finite].min()), float(values[finite].max())
    if least < low or most > high:
        low, high = least, most
    # One value alone, out of the usual range, has nothing to be told apart from; 1 keeps the division whole.
    shares = (np.where(finite, values, low) - low) / ((high - low) or 1.0)
    return PilImage.fromarray(np.rint(255 * shares).astype(np.uint8)).convert("RGB")

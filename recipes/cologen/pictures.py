"""Picture files for the commands: reads them, brings them to the model's size, writes all or nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as PilImage
from PIL import UnidentifiedImageError

from recipes.cologen.data.decoding import as_rgb, open_upright
from recipes.cologen.data.record import Image, Mask
from recipes.cologen.errors import PictureError


class Fitted(NamedTuple):
    """A picture at the model's size, and a sentence about what that took; None when nothing was lost."""

    image: Image
    notice: str | None


def read_picture(path: Path) -> Image:
    """Read a picture as uint8 [height, width, 3]; deeper ones are brought to 8 bits (data/decoding.py).

    Raises:
        PictureError: The file is missing, is no picture, or breaks off.
    """
    if not path.is_file():
        raise PictureError(f"there is no picture {path}; check the path.")
    try:
        return np.asarray(as_rgb(open_upright(path))).copy()
    except (UnidentifiedImageError, OSError, SyntaxError, PilImage.DecompressionBombError) as error:
        raise PictureError(
            f"{path} cannot be read as a picture ({error}); save it as PNG or JPEG."
        ) from error


def fit_picture(image: Image, height: int, width: int, name: str = "the picture") -> Fitted:
    """Bring a picture to a size; one that was enlarged by whole pixels comes back exactly as it was before.

    Args:
        image: uint8 [any height, any width, 3].
        height: Wanted rows.
        width: Wanted columns.
        name: What the notice calls the picture.
    """
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return Fitted(image, None)
    small = shrink_exactly(image, height, width)
    if small is not None:
        return Fitted(small, None)
    resized = PilImage.fromarray(image).resize((width, height), PilImage.Resampling.BOX)
    notice = f"{name} is {columns}x{rows} pixels; it was resized to the model's {width}x{height}."
    return Fitted(np.asarray(resized).copy(), notice)


def shrink_exactly(image: Image, height: int, width: int) -> Image | None:
    """Undo `enlarge`: the picture whose every pixel is one square of `image`; None when there is none."""
    factor = image.shape[0] // height
    if factor < 1 or image.shape[:2] != (height * factor, width * factor):
        return None
    small = image[::factor, ::factor].copy()
    return small if np.array_equal(enlarge(small, factor), image) else None


def enlarge(image: Image, factor: int) -> Image:
    """Show every pixel as a square of factor x factor pixels (nearest neighbour)."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def cut_hole(image: Image, mask: Image | None) -> Image:
    """The source of inpainting: the picture with a black hole, from a mask or black already.

    Args:
        image: uint8 [height, width, 3].
        mask: uint8 [height, width, 3], bright where to paint; None when the hole is black in `image`.

    Raises:
        PictureError: There is no hole, or nothing but a hole.
    """
    hole: Mask = (image == 0).all(axis=-1) if mask is None else mask.mean(axis=-1) > 127.5
    if not hole.any():
        raise PictureError(
            "there is no hole to paint in: the mask has no white pixel."
            if mask is not None
            else "there is no hole to fill: give --mask (white where to paint) or make the hole pure black."
        )
    if hole.all():
        raise PictureError("the hole covers the whole picture; leave some of it to go by.")
    source = image.copy()
    source[hole] = 0
    return source


def check_output(path: Path) -> None:
    """Refuse a path that no picture can be written to, before any work is done.

    Raises:
        PictureError: Its folder is missing, it is a folder, or its ending names no format of pictures.
    """
    if path.is_dir():
        raise PictureError(f"{path} is a folder; give the name of a file, such as {path / 'out.png'}.")
    if not path.parent.is_dir():
        raise PictureError(f"there is no folder {path.parent} to write {path.name} into; make it first.")
    if PilImage.registered_extensions().get(path.suffix.lower()) not in PilImage.SAVE:
        raise PictureError(f"{path.name} does not end like a picture; name it .png (or .jpg, .webp).")


def write_picture(image: Image, path: Path) -> None:
    """Write a picture, all or nothing; the ending of its name decides the format."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        new = Path(folder) / path.name
        PilImage.fromarray(image).save(new)
        new.replace(path)

"""Picture files for the commands: reads them, brings them to the model's size, writes all or nothing."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as PilImage

from recipes.cologen.data.decoding import as_rgb, is_deep, open_upright
from recipes.cologen.data.record import Image, Mask
from recipes.cologen.errors import BrokenPictureError, PictureError

_ADDRESS = re.compile(r"(^|/)(https?|ftp|s3|gs|hf|file|data):")


class Fitted(NamedTuple):
    """A picture as it is used, and a sentence about what that took; None when nothing was lost."""

    image: Image
    notice: str | None


def read_picture(path: Path) -> Image:
    """Read a picture as `read_source` does, without a word about what that took."""
    return read_source(path).image


def read_source(path: Path, name: str | None = None) -> Fitted:
    """Read a picture as uint8 [height, width, 3], its transparent parts on white.

    Args:
        path: The file; deeper pictures are brought to 8 bits (data/decoding.py).
        name: What messages call it; its path where left out.

    Raises:
        PictureError: The file is missing, is no picture, or breaks off.
    """
    name = name or str(path)
    image, transparent = flattened(_opened(path, name))
    notice = f"{name} has transparent parts; the model sees them white." if transparent else None
    return Fitted(image, notice)


def read_mask(path: Path, name: str | None = None) -> Fitted:
    """Read a mask as uint8 [height, width, 3]; where it is transparent nothing is to be painted.

    Args:
        path: The file.
        name: What messages call it; its path where left out.

    Raises:
        PictureError: As `read_source`.
    """
    name = name or str(path)
    image, transparent = flattened(_opened(path, name), "black")
    notice = f"{name} has transparent parts; nothing is painted there, as where a mask is black."
    return Fitted(image, notice if transparent else None)


def flattened(picture: PilImage.Image, paper: str = "white") -> tuple[Image, bool]:
    """A decoded picture as it looks on paper of a colour, and whether any of the paper is seen.

    Args:
        picture: Of any mode; one without transparent parts comes back with its own colours, exactly.
        paper: Name of the colour behind.

    Returns:
        uint8 [height, width, 3], and whether the picture had transparent parts.
    """
    if not picture.has_transparency_data:
        return np.asarray(as_rgb(picture)).copy(), False
    if is_deep(picture):  # one gray level is named transparent; `convert` would cut the others off at 255
        opaque = as_rgb(picture)
        seen = np.asarray(picture) != picture.info["transparency"]
        alpha = PilImage.fromarray(np.where(seen, 255, 0).astype(np.uint8))
    else:
        layered = picture.convert("RGBA")
        opaque, alpha = layered.convert("RGB"), layered.getchannel("A")
    on_paper = PilImage.composite(opaque, PilImage.new("RGB", picture.size, paper), alpha)
    return np.asarray(on_paper).copy(), alpha.getextrema() != (255, 255)


def _opened(path: Path, name: str) -> PilImage.Image:
    if not path.is_file():
        raise PictureError(_missing(path, name))
    try:
        return open_upright(path)
    except BrokenPictureError as error:
        if isinstance(error.__cause__, PilImage.DecompressionBombError):
            raise PictureError(f"{name}: {error}. Make it smaller.") from error
        raise PictureError(
            f"{name} cannot be read as a picture ({error}); save it as PNG or JPEG."
        ) from error


def _missing(path: Path, name: str) -> str:
    """Why there is no picture at a path."""
    if path == Path():
        return "the name of the picture is empty (or the working folder itself); give a picture's path."
    if path.is_dir():
        return f"{name} is a folder, not a picture; give the path of a picture."
    if _ADDRESS.search(path.as_posix()):
        address = re.sub(r":/(?!/)", "://", name)  # a path has lost one of the two
        return f"{address} is an address; pictures are not fetched. Download it and give the file's path."
    return f"there is no picture {name}; check the path."


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
        mask: uint8 [height, width, 3], where to paint brighter than half (the mean of red, green and blue
            above 127.5); None when the hole is black in `image`.

    Raises:
        PictureError: There is no hole, or nothing but a hole.
    """
    hole: Mask = (image == 0).all(axis=-1) if mask is None else mask.mean(axis=-1) > 127.5
    if not hole.any():
        raise PictureError(
            "there is no hole to paint in: the mask has no white pixel (none brighter than half of 255)."
            if mask is not None
            else "there is no hole to fill: give --mask (white where to paint) or make the hole pure black."
        )
    if hole.all():
        bright = "" if mask is None else " (every pixel of the mask is brighter than half of 255)"
        raise PictureError(f"the hole covers the whole picture{bright}; leave some of it to go by.")
    source = image.copy()
    source[hole] = 0
    return source


def check_output(path: Path, sources: Iterable[Path] = ()) -> None:
    """Refuse a path that no picture can be written to, before any work is done.

    Args:
        path: Where a picture is to be written; one that is there is replaced.
        sources: Pictures that are drawn from, which are not.

    Raises:
        PictureError: Its folder is missing or cannot be written to, it is a folder, its ending names no
            format of pictures, or it is one of the sources.
    """
    if path.is_dir():
        raise PictureError(f"{path} is a folder; give the name of a file, such as {path / 'out.png'}.")
    if not path.parent.is_dir():
        raise PictureError(f"there is no folder {path.parent} to write {path.name} into; make it first.")
    if PilImage.registered_extensions().get(path.suffix.lower()) not in PilImage.SAVE:
        raise PictureError(f"{path.name} does not end like a picture; name it .png (or .jpg, .webp).")
    for source in sources:
        if path.exists() and source.exists() and path.samefile(source):
            raise PictureError(f"{path} is what is drawn from and would be lost; give another --output.")
    check_writable(path.parent)


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made; one that is not there yet is asked by its parents.

    Raises:
        PictureError: Says why.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".cologen-"):
            pass
    except OSError as error:
        raise PictureError(
            f"nothing can be written into {folder} ({error.strerror}); give another --output."
        ) from error


def write_picture(image: Image, path: Path) -> None:
    """Write a picture, all or nothing; the ending of its name decides the format."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        new = Path(folder) / path.name
        PilImage.fromarray(image).save(new)
        new.replace(path)

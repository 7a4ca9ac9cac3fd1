"""Picture files for the commands: reads them, brings them to the model's size, writes all or nothing."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image as PilImage

from prw.storage.atomic import atomic_file
from recipes.cologen.data.decoding import open_upright
from recipes.cologen.data.framing import frame_of, resized_mask, resized_pixels, stretched
from recipes.cologen.data.reading import as_picture_of, bright, mask_of, opaque
from recipes.cologen.data.record import Image, Mask
from recipes.cologen.errors import BrokenPictureError, PictureError

Result = TypeVar("Result")
_ADDRESS = re.compile(r"(^|/)(https?|ftp|s3|gs|hf|file|data):")


class Fitted(NamedTuple):
    """A picture as it is used, and a sentence about what that took; None when nothing was lost."""

    image: Image
    notice: str | None


def read_source(path: Path, name: str | None = None) -> Fitted:
    """Read a picture as uint8 [height, width, 3], its transparent parts on white.

    Args:
        path: The file; deeper pictures are brought to 8 bits (data/decoding.py).
        name: What messages call it; its path where left out.

    Raises:
        PictureError: The file is missing, is no picture, or breaks off.
    """
    name = name or str(path)
    read = _read(path, name, opaque)
    notice = f"{name} has transparent parts; the model sees them white." if read.was_transparent else None
    return Fitted(np.asarray(read.picture).copy(), notice)


def read_mask(path: Path, name: str | None = None) -> Fitted:
    """Read a mask as a picture uint8 [height, width, 3]: white where to paint, else black.

    Args:
        path: The file, which is read as masks of training data are (data/reading.py).
        name: What messages call it; its path where left out.

    Raises:
        PictureError: As `read_source`.
    """
    name = name or str(path)
    mask, laid = _read(path, name, lambda picture: (mask_of(picture), opaque(picture)))
    notice = f"{name} has transparent parts; nothing is painted there, as where a mask is black."
    return Fitted(as_picture_of(mask), notice if laid.was_transparent else None)


def _read(path: Path, name: str, read: Callable[[PilImage.Image], Result]) -> Result:
    if not path.is_file():
        raise PictureError(_missing(path, name))
    try:
        return read(open_upright(path))
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


def fit_picture(
    image: Image, height: int, width: int, name: str = "the picture", *, classes: bool = False
) -> Fitted:
    """Bring a picture to a size as training does: scaled to cover it, the middle kept.

    One that was enlarged by whole pixels comes back exactly as it was before.

    Args:
        image: uint8 [any height, any width, 3].
        height: Wanted rows.
        width: Wanted columns.
        name: What the notice calls the picture.
        classes: Whether its colours stand for classes, as in `resized_pixels`.
    """
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return Fitted(image, None)
    frame = frame_of((columns, rows), (height, width))
    fitted = resized_pixels(PilImage.fromarray(image), frame, classes=classes)
    factor = rows // height
    if image.shape[:2] == (factor * height, factor * width) and np.array_equal(
        enlarge(fitted, factor), image
    ):
        return Fitted(fitted, None)
    left, top, right, bottom = (round(side) for side in frame.crop)
    middle = f"{max(1, right - left)}x{max(1, bottom - top)}"
    cut = "" if frame.crop == (0, 0, columns, rows) else f"its middle, {middle}, "
    kept = f"{cut or 'it '}was resized to the model's {width}x{height}."
    return Fitted(fitted, f"{name} is {columns}x{rows} pixels; {kept}")


def enlarge(image: Image, factor: int) -> Image:
    """Show every pixel as a square of factor x factor pixels (nearest neighbour)."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def cut_hole(image: Image, mask: Image | Mask | None, size: tuple[int, int] | None = None) -> Image:
    """The source of inpainting: the picture with a black hole, from a mask or black already.

    As in training the hole is brought to a size by nearest neighbour, so that no pixel of it is lost to its
    neighbours' colours.

    Args:
        image: uint8 [height, width, 3].
        mask: True where to paint; as a picture, where it is brighter than half of its brightest point. One of
            another size is stretched over the picture. None: the hole is black in `image`.
        size: Height and width to bring both to; None keeps those of `image`.

    Raises:
        PictureError: There is no hole, or nothing but a hole.
    """
    frame = frame_of(image.shape[1::-1], size)
    hole = resized_mask((image == 0).all(axis=-1) if mask is None else _over(mask, image), frame)
    if not hole.any():
        raise PictureError(
            "there is no hole to paint in: the mask has no white pixel where the model looks."
            if mask is not None
            else "there is no hole to fill: give --mask (white where to paint) or make the hole pure black."
        )
    if hole.all():
        bright = "" if mask is None else " (no pixel of the mask is much darker than the others)"
        raise PictureError(f"the hole covers the whole picture{bright}; leave some of it to go by.")
    source = resized_pixels(PilImage.fromarray(image), frame)
    source[hole] = 0
    return source


def _over(mask: Image | Mask, image: Image) -> Mask:
    """A mask of the picture's size, stretched over it where it has another."""
    hole = bright(mask) if mask.ndim == 3 else mask.astype(np.bool_)
    height, width = image.shape[:2]
    return (
        hole if hole.shape == (height, width) else resized_mask(hole, stretched(hole.shape, (height, width)))
    )


def check_output(path: Path, sources: Iterable[Path] = ()) -> None:
    """Refuse a path that no picture can be written to, before any work is done.

    Args:
        path: Where a picture is to be written; one that is there is replaced.
        sources: Input pictures, which are not.

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
            raise PictureError(f"{path} is an input picture and would be lost; give another --output.")
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
    with atomic_file(path) as draft:
        PilImage.fromarray(image).save(draft)

"""What the page takes from its users, and the one way in which their pictures are read."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image as PilImage
from PIL import ImageOps
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from recipes.cologen.data.reading import as_picture_of, opaque
from recipes.cologen.data.record import Image
from recipes.cologen.errors import PictureError, PromptError
from recipes.cologen.generation.settings import check_size, height_and_width
from recipes.cologen.pipeline.pixels import MAX_PIXELS

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""No other decoder is tried: some of PIL's start programs (EPS) or are seldom looked after."""


MOST_SEED = 2**53 - 1
"""Browsers keep numbers as floats: a larger one would be rounded on its way here."""
SHORT = 60
"""Letters of a prompt, or of a word, that a refusal repeats."""
MOST_SAID = 1500
"""Letters of a refusal."""
FLATTENED = "The picture is transparent in places; the model sees white there."


class Limits(BaseModel):
    """The most that one request may ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upload_bytes: int = Field(default=10 * 2**20, gt=0)
    """Of one file."""
    pixels: int = Field(default=16_000_000, gt=0)
    """Width times height of a picture, read off its header before anything is decoded."""
    letters: int = Field(default=2000, gt=0)
    """Of a prompt; the base may read less and then says so."""
    steps: int = Field(default=100, gt=0)
    """Sampling steps."""
    drawn_pixels: int = Field(default=MAX_PIXELS, gt=0)
    """Width times height of a picture for which a size is asked."""
    waiting: int = Field(default=16, gt=0)
    """Pictures that may be asked for and not generated yet, of all users together."""


class Read(NamedTuple):
    """A picture as the model gets it, and a sentence about what that took; empty when nothing was lost."""

    image: Image
    notice: str = ""


def read_rgb(file: Path | bytes, limits: Limits, what: str = "the file") -> Image:
    """The picture of `read_upload` alone."""
    return read_upload(file, limits, what).image


def read_upload(file: Path | bytes, limits: Limits, what: str = "the file") -> Read:
    """Read an upload as uint8 [height, width, 3], laid on white where it is transparent.

    Args:
        file: The file, or what it holds.
        limits: What is taken.
        what: What a refusal calls it.

    Raises:
        PictureError: It is too large, or no picture, or broken; nothing was decoded if it is too large.
    """
    size = len(file) if isinstance(file, bytes) else file.stat().st_size
    if size > limits.upload_bytes:
        raise PictureError(
            f"{what} has {size / 2**20:.1f} MiB; at most {limits.upload_bytes / 2**20:.1f} are taken. Save "
            "it smaller, or as JPEG."
        )
    picture = opened(io.BytesIO(file) if isinstance(file, bytes) else file, limits, what)
    try:
        return _on_white(ImageOps.exif_transpose(picture))
    except Exception as error:  # a decoder may fail in any way on bytes that anybody can send
        raise PictureError(f"{what} is broken: it cannot be decoded. Save it anew as PNG or JPEG.") from error
    finally:
        picture.close()


def _on_white(picture: PilImage.Image) -> Read:
    """8-bit RGB; the colours that hide under transparent pixels are nothing that its owner sees."""
    read = opaque(picture)
    image = np.asarray(read.picture).copy()
    return Read(image, FLATTENED) if read.was_transparent else Read(image)


def read_strokes(file: bytes | Path, limits: Limits) -> Image:
    """Read a layer of drawing: white where anything was painted, black elsewhere; uint8 [height, width, 3].

    Raises:
        PictureError: As `read_rgb`.
    """
    picture = opened(io.BytesIO(file) if isinstance(file, bytes) else file, limits, "the drawn mask")
    try:
        painted = np.asarray(picture.convert("RGBA"))[..., 3] > 127
    except Exception as error:  # as above
        raise PictureError("the drawn mask cannot be read; draw it anew.") from error
    finally:
        picture.close()
    return as_picture_of(painted)


def opened(file: BinaryIO | Path, limits: Limits, what: str) -> PilImage.Image:
    """Open a picture, its header only.

    Raises:
        PictureError: It is no picture of a format that is taken, or says that it is too large.
    """
    try:
        picture = PilImage.open(file, formats=FORMATS)
    except PilImage.DecompressionBombError as error:
        raise PictureError(
            f"{what} claims more than the {limits.pixels / 1e6:.1f} million pixels that are taken. Make it "
            "smaller."
        ) from error
    except Exception as error:  # as above
        raise PictureError(
            f"{what} is not a picture that can be read here; expected {', '.join(FORMATS)}."
        ) from error
    width, height = picture.size
    if width * height > limits.pixels:
        picture.close()
        raise PictureError(
            f"{what} is {width}x{height} pixels, {width * height / 1e6:.1f} million; at most "
            f"{limits.pixels / 1e6:.1f} million are taken. Make it smaller."
        )
    return picture


def check_prompt(prompt: str, limits: Limits) -> None:
    """Refuse a prompt that is empty or endless.

    Raises:
        PromptError: Says which.
    """
    if not prompt.strip():
        raise PromptError("there is no prompt; say what is to be generated.")
    if len(prompt) > limits.letters:
        raise PromptError(f"the prompt has {len(prompt)} letters; at most {limits.letters} are taken.")


def whole(name: str, given: object, least: int, most: int) -> int:
    """A number that has to be whole, as the browser sent it.

    Raises:
        PictureError: Names it and says what came.
    """
    if isinstance(given, int | float) and least <= given <= most and float(given).is_integer():
        return int(given)
    came = "none" if given is None else f"{given!r:.{SHORT}}"
    raise PictureError(f"the {name} must be a whole number from {least} to {most}, got {came}.")


def size_within(given: str | None, limits: Limits) -> str | None:
    """A size as the browser sent it; None where none was typed.

    Raises:
        PictureError: It is no size, or a larger one than is generated.
    """
    text = "".join((given or "").split()).lower()
    if not text:
        return None
    try:
        height, width = height_and_width(check_size(text))
    except PydanticCustomError as error:
        raise PictureError(f"the size: {error.message()}, got {text!r:.{SHORT}}.") from error
    if height * width > limits.drawn_pixels:
        raise PictureError(
            f"the size {text} has {height * width} pixels; at most {limits.drawn_pixels} are generated here."
        )
    return text


def in_short(message: str, prompt: str) -> str:
    """A refusal that does not repeat a long prompt, nor a word without end.

    Args:
        message: The refusal.
        prompt: What was typed.
    """
    for typed in (repr(prompt)[1:-1], prompt):
        if len(typed) > SHORT:
            message = message.replace(typed, f"{typed[:SHORT]}...")
    message = re.sub(rf"(\S{{{SHORT}}})\S+", r"\1...", message)
    return message if len(message) <= MOST_SAID else f"{message[:MOST_SAID]}..."

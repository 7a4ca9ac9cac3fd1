"""Draws one sheet of pictures that differ in one or two settings: `generate --grid seed=0..3 steps=5,10`.

The first setting changes from left to right, the second from top to bottom; labels say which is which.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw
from pydantic import ValidationError

from recipes.cologen.data.record import Image
from recipes.cologen.drawing import DrawingRoom
from recipes.cologen.errors import PictureError
from recipes.cologen.picture_settings import NO_EXPERTS, PictureSettings, same_run
from recipes.cologen.pictures import enlarge, read_picture
from recipes.cologen.report.run_reader import RunReader

AXES = ("seed", "steps", "guidance", "pool")
"""Settings that may change over a sheet."""
MOST_CELLS = 100
CELL_PIXELS = 128
"""Pixels that the shorter side of a small picture is enlarged to."""
LABEL, GAP = 18, 4
"""Pixels of a line of labels, and between pictures."""


class Axis(NamedTuple):
    """A setting and the values that it takes."""

    name: str
    values: tuple[str, ...]


def axis(text: str) -> Axis:
    """Read `NAME=A,B,C` or `NAME=FIRST..LAST` off the command line.

    Raises:
        ArgumentTypeError: Says what came.
    """
    name, equals, values = text.partition("=")
    if name not in AXES or not equals:
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(AXES)} and its values, such as seed=0..3 or pool=inpainting,"
            f"full-pool; got {text!r}"
        )
    whole = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", values)
    if whole is not None:
        first, last = int(whole[1]), int(whole[2])
        if not 0 <= last - first < MOST_CELLS:
            raise argparse.ArgumentTypeError(f"{text!r} is backwards, or more than {MOST_CELLS} values")
        return Axis(name, tuple(map(str, range(first, last + 1))))
    found = tuple(value.strip() for value in values.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty value")
    return Axis(name, found)


def draw_grid(asked: argparse.Namespace) -> Image:
    """Draw the sheet that the options of `generate` ask for, with the model loaded once.

    Raises:
        PictureError: The axes are the same twice or make too many pictures, or a value will not do.
    """
    across, *others = asked.grid
    down = others[0] if others else Axis("", ("",))
    cells = len(across.values) * len(down.values)
    if len(others) > 1 or across.name == down.name or cells > MOST_CELLS:
        raise PictureError(
            f"--grid takes one or two different settings and at most {MOST_CELLS} pictures in all; got "
            f"{', '.join(each.name for each in asked.grid)} with {cells}."
        )
    if asked.also:
        raise PictureError("--grid draws from one source; leave --also out.")
    run = RunReader(asked.checkpoint)
    same_run(run.settings.fingerprint(), asked.of_run, asked.checkpoint)
    image = read_picture(asked.image)
    mask = None if asked.mask is None else read_picture(Path(asked.mask))
    room = DrawingRoom(run)
    if asked.draw_map is not None and asked.task != "control":
        raise PictureError(f"--draw-map is for --task control; {asked.task} reads the picture itself.")
    if asked.draw_map is not None:
        image = room.made_map(image, asked.draw_map)
    wanted = [
        [_settings(asked, room, {across.name: right, down.name: low}) for right in across.values]
        for low in down.values
    ]
    pictures = [[room.draw(one, image, mask).image for one in row] for row in wanted]
    return sheet(pictures, across, down)


def _settings(asked: argparse.Namespace, room: DrawingRoom, changed: dict[str, str]) -> PictureSettings:
    sampling = room.settings.sampling
    usual = sampling.guidance if room.reads_guidance else None
    values = {
        "task": asked.task,
        "prompt": asked.prompt,
        "pool": NO_EXPERTS if asked.experts_off else asked.as_of or asked.task,
        "seed": asked.seed,
        "steps": asked.steps or sampling.steps,
        "guidance": usual if asked.guidance is None else asked.guidance,
    }
    try:
        return PictureSettings.model_validate(values | {name: to for name, to in changed.items() if name})
    except ValidationError as error:
        first = error.errors()[0]
        raise PictureError(f"--grid {first['loc'][0]}={first['input']}: {first['msg']}.") from error


def sheet(pictures: Sequence[Sequence[Image]], across: Axis, down: Axis) -> Image:
    """Lay pictures of one size out in rows, with labels above and, for two axes, before each row."""
    small = pictures[0][0]
    cells = [[enlarge(one, max(1, CELL_PIXELS // min(small.shape[:2]))) for one in row] for row in pictures]
    height, width = cells[0][0].shape[:2]
    lines = LABEL * (2 if down.name else 1)
    page = PilImage.new(
        "RGB", (len(cells[0]) * (width + GAP) - GAP, len(cells) * (height + lines + GAP) - GAP), "white"
    )
    pen = ImageDraw.Draw(page)
    for row, low in enumerate(down.values):
        top = row * (height + lines + GAP)
        for column, right in enumerate(across.values):
            left = column * (width + GAP)
            words = f"{across.name} {right}" + (f"\n{down.name} {low}" if down.name else "")
            pen.multiline_text((left + 2, top + 2), words, fill="black")
            page.paste(PilImage.fromarray(cells[row][column]), (left, top + lines))
    return np.asarray(page).copy()

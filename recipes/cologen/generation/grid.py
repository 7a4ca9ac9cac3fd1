"""Generates one sheet of pictures that differ in one or two settings: `generate --grid seed=0..3 steps=5,10`.

The first setting changes from left to right, the second from top to bottom; labels say which is which.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw

from recipes.cologen.data.picture_files import enlarge, read_mask, read_source
from recipes.cologen.data.record import Image
from recipes.cologen.errors import PictureError
from recipes.cologen.generation.sample import map_notice
from recipes.cologen.generation.session import GenerationSession
from recipes.cologen.generation.settings import (
    AXIS_OPTIONS,
    called,
    same_config,
    same_run,
    wanted_by,
)
from recipes.cologen.runs.reader import RunReader

AXES = tuple(AXIS_OPTIONS)
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
    if ".." in values:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no range of whole numbers from 0 up, such as seed=0..3"
        )
    found = tuple(value.strip() for value in values.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty value")
    if len(set(map(_value, found))) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} has a value twice")
    return Axis(name, found)


def _value(text: str) -> str | Decimal:
    """The value to compare by: 5, 5.0 and 05 are equal."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    return number if number.is_finite() else text


def generate_grid(args: argparse.Namespace, said: Callable[[str], None]) -> Image:
    """Generate the sheet that the options of `generate` ask for, with the model loaded once.

    Args:
        args: The options.
        said: Called with each change that generating it needed.

    Raises:
        PictureError: The axes are the same twice or make too many pictures, or a value will not do.
    """
    across, down = _axes(args)
    run = RunReader(args.checkpoint)
    same_config(run.settings, args.config, args.checkpoint)
    same_run(run.settings.fingerprint(), args.of_run, args.checkpoint, args.settings)
    read = read_source(args.image, called(args, "image"))
    hole = None if args.mask is None else read_mask(args.mask, called(args, "mask"))
    session = GenerationSession(run)
    image, mask = read.image, None if hole is None else hole.image
    notices = [read.notice, None if hole is None else hole.notice]
    if args.draw_map is not None:
        image = session.made_map(image, args.draw_map, args.size)
        notices.append(map_notice(args.prompt, args.draw_map))
    steps = session.settings.sampling.steps
    wanted = [
        [wanted_by(args, steps, _changed((across.name, right), (down.name, low))) for right in across.values]
        for low in down.values
    ]
    for one in (cell for row in wanted for cell in row):
        session.check_pool(one.pool)
    seen = session.source(args.task, args.prompt, read.image, mask, size=args.size)
    for notice in (*notices, *seen.notices):
        if notice is not None:
            said(f"note: {notice}")
    return sheet([[session.generate(one, image, mask).image for one in row] for row in wanted], across, down)


def _axes(args: argparse.Namespace) -> tuple[Axis, Axis]:
    """What changes from left to right and from top to bottom; the second may be no axis at all.

    Raises:
        PictureError: The axes are no two that make a sheet, or other options contradict them.
    """
    across, *others = args.grid
    down = others[0] if others else Axis("", ("",))
    cells = len(across.values) * len(down.values)
    if len(others) > 1 or across.name == down.name or cells > MOST_CELLS:
        raise PictureError(
            f"--grid takes one or two different settings and at most {MOST_CELLS} pictures in all; got "
            f"{', '.join(each.name for each in args.grid)} with {cells}."
        )
    if args.also:
        raise PictureError("--grid generates from one source; leave --also out.")
    given = {
        "--seed": args.seed is not None,
        "--steps": args.steps is not None,
        "--guidance": args.guidance is not None,
        "--as-of": args.as_of is not None,
        "--experts-off": args.experts_off,
    }
    for one in args.grid:
        for option in AXIS_OPTIONS[one.name]:
            if given[option]:
                raise PictureError(
                    f"{option} and --grid {one.name}=... both say the {one.name}; leave one of them out."
                )
    return across, down


def _changed(*settings: tuple[str, str]) -> dict[str, str]:
    """What a cell changes; the second axis may have no name."""
    return {name: value for name, value in settings if name}


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

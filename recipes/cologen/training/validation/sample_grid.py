"""One picture of what a model draws: a row for each example, all its sources, target, output and prompt."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw

from recipes.cologen.data.record import Example, Image

CELL = 128
"""Least height of a picture in the grid, in pixels; small ones are enlarged by whole numbers."""
GAP, TEXT_WIDTH, LABEL = 4, 220, 14


def sample_grid(examples: Sequence[Example], outputs: Sequence[Image]) -> Image:
    """Draw the grid: uint8 [height, width, 3] on white."""
    rows = [_row(example, output) for example, output in zip(examples, outputs, strict=True)]
    width = max(row.shape[1] for row in rows)
    grid = np.full((sum(row.shape[0] + GAP for row in rows), width, 3), 255, np.uint8)
    top = 0
    for row in rows:
        grid[top : top + row.shape[0], : row.shape[1]] = row
        top += row.shape[0] + GAP
    return grid


def _row(example: Example, output: Image) -> Image:
    """Sources, target and output beside each other, each with its name above, and the prompt."""
    sources = (example.source, *example.further)
    names = ["source"] if len(sources) == 1 else [f"source {place + 1}" for place in range(len(sources))]
    pictures = [_enlarged(picture) for picture in (*sources, example.target, output)]
    height = LABEL + max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] + GAP for picture in pictures)
    row = PilImage.new("RGB", (width + TEXT_WIDTH, height), "white")
    left = 0
    for name, picture in zip((*names, "target", "output"), pictures, strict=True):
        ImageDraw.Draw(row).text((left, 0), name, fill="black")
        row.paste(PilImage.fromarray(picture), (left, LABEL))
        left += picture.shape[1] + GAP
    lines = textwrap.wrap(example.prompt.encode("ascii", "replace").decode(), 34) or ["(no prompt)"]
    ImageDraw.Draw(row).multiline_text((width, 2), "\n".join([f"[{example.kind}]", *lines[:8]]), fill="black")
    return np.asarray(row)


def _enlarged(picture: Image) -> Image:
    times = max(1, CELL // picture.shape[0])
    return np.ascontiguousarray(picture.repeat(times, axis=0).repeat(times, axis=1))

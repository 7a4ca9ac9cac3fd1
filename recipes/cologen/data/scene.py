"""The embedded world's pictures: a scene as data, the palette, the pixel shapes, drawing and captions.

A scene is a background and one object in some of the four quadrants of a 16x16 picture. It is drawn without
anti-aliasing, so that the oracle (oracle.py) can read it back exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

SIDE = 16
"""Width and height of a picture, in pixels."""
CELL = SIDE // 2
"""Width and height of a quadrant, in pixels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 90, 230),
    "yellow": (245, 215, 50),
    "purple": (150, 60, 190),
    "orange": (245, 135, 30),
    "cyan": (60, 205, 220),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "gray": (130, 130, 130),
    "navy": (25, 30, 75),
    "tan": (205, 180, 140),
}
PLACES = ("top left", "top right", "bottom left", "bottom right")
SIZES = {"small": 3, "large": 5}
# Shapes that share most of their pixels are not told apart by a squared error: a disc beside a square, four
# corners apart, was still mistaken for it after 6,000 steps (dev/LOG.md). So the circle is a ring, the cross
# thin.
_PIXELS: dict[str, dict[str, str]] = {
    "square": {"small": "111 111 111", "large": "11111 11111 11111 11111 11111"},
    "circle": {"small": "010 101 010", "large": "01110 10001 10001 10001 01110"},
    "triangle": {"small": "100 110 111", "large": "10000 11000 11100 11110 11111"},
    "cross": {"small": "101 010 101", "large": "10001 01010 00100 01010 10001"},
}
SHAPES = tuple(_PIXELS)
OFFSETS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Where an object's centre may sit in its quadrant: row and column 3 + offset."""


@dataclass(frozen=True)
class SceneObject:
    """One object.

    What, how large, which colour, which quadrant, where in it, and the colour of a box around it.
    """

    shape: str
    size: str
    colour: str
    place: str
    offset: tuple[int, int] = (0, 0)
    frame: str | None = None

    @property
    def name(self) -> str:
        """Colour and shape, the way instructions refer to it: `red circle`."""
        return f"{self.colour} {self.shape}"

    @property
    def phrase(self) -> str:
        """How a caption names it: `small red circle top left`."""
        return f"{self.size} {self.colour} {self.shape} {self.place}"

    @property
    def look(self) -> tuple[str, str, str, str, str | None]:
        """Everything but the exact pixel position."""
        return self.shape, self.size, self.colour, self.place, self.frame


@dataclass(frozen=True)
class Scene:
    """A background and its objects, at most one a quadrant, in reading order."""

    background: str
    objects: tuple[SceneObject, ...]

    @property
    def caption(self) -> str:
        """`small red circle top left and large blue square bottom right on gray`."""
        return " and ".join(item.phrase for item in self.objects) + f" on {self.background}"

    def with_objects(self, *objects: SceneObject) -> Scene:
        """The same background with these objects, put in reading order."""
        return replace(self, objects=tuple(sorted(objects, key=lambda item: PLACES.index(item.place))))

    def without(self, item: SceneObject) -> Scene:
        """The scene with one object taken out."""
        return replace(self, objects=tuple(other for other in self.objects if other is not item))

    def exchanged(self, old: SceneObject, new: SceneObject) -> Scene:
        """The scene with one object exchanged for another."""
        return self.without(old).with_objects(*self.without(old).objects, new)

    def free_places(self) -> list[str]:
        """Quadrants that hold no object."""
        taken = {item.place for item in self.objects}
        return [place for place in PLACES if place not in taken]


@cache
def cell_mask(shape: str, size: str, offset: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of an object inside its quadrant: bool [8, 8]."""
    rows = np.array([[mark == "1" for mark in row] for row in _PIXELS[shape][size].split()])
    mask = np.zeros((CELL, CELL), dtype=bool)
    top, left = (3 + shift - SIZES[size] // 2 for shift in offset)
    mask[top : top + SIZES[size], left : left + SIZES[size]] = rows
    return mask


@cache
def cell_frame(size: str, offset: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of a one-pixel box around an object, inside its quadrant: bool [8, 8]."""
    frame = np.zeros((CELL, CELL), dtype=bool)
    top, left = (2 + shift - SIZES[size] // 2 for shift in offset)
    end = SIZES[size] + 2
    frame[top : top + end, left : left + end] = True
    frame[top + 1 : top + end - 1, left + 1 : left + end - 1] = False
    return frame


def cell_origin(place: str) -> tuple[int, int]:
    """Top row and left column of a quadrant."""
    row, column = divmod(PLACES.index(place), 2)
    return row * CELL, column * CELL


def object_mask(item: SceneObject) -> NDArray[np.bool_]:
    """Pixels of an object in the whole picture: bool [16, 16]."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    top, left = cell_origin(item.place)
    mask[top : top + CELL, left : left + CELL] = cell_mask(item.shape, item.size, item.offset)
    return mask


def object_box(item: SceneObject) -> tuple[int, int, int, int]:
    """Bounding box (x0, y0, x1, y1) of an object, end excluded."""
    top, left = cell_origin(item.place)
    first_row, first_column = (3 + shift - SIZES[item.size] // 2 for shift in item.offset)
    extent = SIZES[item.size]
    return (
        left + first_column,
        top + first_row,
        left + first_column + extent,
        top + first_row + extent,
    )


def draw(scene: Scene) -> NDArray[np.uint8]:
    """Draw a scene: uint8 [16, 16, 3]."""
    image = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    image[:] = BACKGROUNDS[scene.background]
    for item in scene.objects:
        top, left = cell_origin(item.place)
        cell = image[top : top + CELL, left : left + CELL]
        cell[cell_mask(item.shape, item.size, item.offset)] = COLOURS[item.colour]
        if item.frame is not None:
            cell[cell_frame(item.size, item.offset)] = COLOURS[item.frame]
    return image

"""The embedded world's pictures: a scene as data, the palette, the pixel shapes, drawing and captions.

A scene is a background and one object in some of the four quadrants of a 16x16 picture. It is drawn without
anti-aliasing, so that the oracle (oracle.py) can read it back exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
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
_CENTRE = 3
"""Row and column of an object's middle pixel inside its quadrant."""
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


@dataclass(frozen=True)
class SceneObject:
    """One object: what, how large, which colour, which quadrant, and the colour of a box around it."""

    shape: str
    size: str
    colour: str
    place: str
    frame: str | None = None

    @property
    def name(self) -> str:
        """Colour and shape, the way instructions refer to it: `red circle`."""
        return f"{self.colour} {self.shape}"

    def phrase(self, *, sized: bool) -> str:
        """How a caption names it: `red circle top left`, or `small red circle top left`."""
        return f"{self.size} {self.name} {self.place}" if sized else f"{self.name} {self.place}"


@dataclass(frozen=True)
class Scene:
    """A background and its objects, at most one a quadrant, in reading order."""

    background: str
    objects: tuple[SceneObject, ...]

    @property
    def caption(self) -> str:
        """What a picture's caption says: `red circle top left and blue square bottom right on gray`.

        Sizes are left out: only the picture shows them.
        """
        return self.described([False] * len(self.objects))

    def described(self, sized: Sequence[bool]) -> str:
        """A caption that gives the size of some of the objects."""
        phrases = (item.phrase(sized=tell) for item, tell in zip(self.objects, sized, strict=True))
        return " and ".join(phrases) + f" on {self.background}"

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
def cell_mask(shape: str, size: str) -> NDArray[np.bool_]:
    """Pixels of an object inside its quadrant: bool [8, 8]."""
    rows = np.array([[mark == "1" for mark in row] for row in _PIXELS[shape][size].split()])
    mask = np.zeros((CELL, CELL), dtype=bool)
    first, end = _CENTRE - SIZES[size] // 2, _CENTRE + SIZES[size] // 2 + 1
    mask[first:end, first:end] = rows
    return mask


@cache
def cell_frame(size: str) -> NDArray[np.bool_]:
    """Pixels of a one-pixel box around an object, inside its quadrant: bool [8, 8]."""
    frame = np.zeros((CELL, CELL), dtype=bool)
    first, end = _CENTRE - SIZES[size] // 2, _CENTRE + SIZES[size] // 2 + 1
    frame[first - 1 : end + 1, first - 1 : end + 1] = True
    frame[first:end, first:end] = False
    return frame


def cell_origin(place: str) -> tuple[int, int]:
    """Top row and left column of a quadrant."""
    row, column = divmod(PLACES.index(place), 2)
    return row * CELL, column * CELL


def object_mask(item: SceneObject) -> NDArray[np.bool_]:
    """Pixels of an object in the whole picture: bool [16, 16]."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    top, left = cell_origin(item.place)
    mask[top : top + CELL, left : left + CELL] = cell_mask(item.shape, item.size)
    return mask


def object_box(item: SceneObject) -> tuple[int, int, int, int]:
    """Bounding box (x0, y0, x1, y1) of an object, end excluded."""
    top, left = cell_origin(item.place)
    first, extent = _CENTRE - SIZES[item.size] // 2, SIZES[item.size]
    return left + first, top + first, left + first + extent, top + first + extent


def draw(scene: Scene) -> NDArray[np.uint8]:
    """Draw a scene: uint8 [16, 16, 3]."""
    image = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    image[:] = BACKGROUNDS[scene.background]
    for item in scene.objects:
        top, left = cell_origin(item.place)
        cell = image[top : top + CELL, left : left + CELL]
        cell[cell_mask(item.shape, item.size)] = COLOURS[item.colour]
        if item.frame is not None:
            cell[cell_frame(item.size)] = COLOURS[item.frame]
    return image

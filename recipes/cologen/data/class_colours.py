"""The colour that each segmentation class is shown in."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

CLASSES = 256
"""Most segmentation classes that can be told apart; their numbers start at 0, the background."""
_FIRST_COLOURS = (
    (0, 0, 0),
    (180, 60, 120),
    (110, 190, 40),
    (20, 110, 200),
    (230, 160, 200),
    (90, 20, 10),
    (10, 220, 180),
)
_LEAST_DISTANCE = 24
"""Levels, in some channel, that a further colour is away from each of the first."""


def _spread_colours() -> Iterator[tuple[int, int, int]]:
    """PASCAL VOC's map: the bits of a number dealt to red, green and blue in turn, highest first."""
    for number in count(1):
        bits = [number >> place & 1 for place in range(24)]
        red, green, blue = (sum(bits[channel + 3 * i] << 7 - i for i in range(8)) for channel in range(3))
        yield red, green, blue


def _class_colours() -> NDArray[np.uint8]:
    """The first colours, then those of VOC's map that none of the first is near to."""
    first = np.array(_FIRST_COLOURS)
    told_apart = (
        colour for colour in _spread_colours() if np.abs(first - colour).max(-1).min() >= _LEAST_DISTANCE
    )
    return np.array([*_FIRST_COLOURS, *islice(told_apart, CLASSES - len(_FIRST_COLOURS))], dtype=np.uint8)


CLASS_COLOURS = _class_colours()
"""The colour of every segmentation class, uint8 [256, 3], no two alike; class 0, the background, is black."""

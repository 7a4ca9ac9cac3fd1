"""The control view: a map of the picture (edges, depth, lines, classes) as source, the picture as target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.cologen.data.record import ALL_FIXED, Example, Image, MissingMetadataError, Record
from recipes.cologen.data.seeding import view_rng
from recipes.cologen.data.world import pick

PROMPTS = {
    "canny": "canny edge to image",
    "depth": "depth map to image",
    "soft_edge": "soft edge to image",
    "lineart": "line art to image",
    "segmentation": "segmentation map to image",
}
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


def _steps(image: Image) -> NDArray[np.float32]:
    """Largest change to the right or downward neighbour over the channels.

    Float [height, width], 0 to 255.
    """
    values = image.astype(np.float32)
    down = np.abs(np.diff(values, axis=0, append=values[-1:])).max(-1)
    right = np.abs(np.diff(values, axis=1, append=values[:, -1:])).max(-1)
    steps: NDArray[np.float32] = np.maximum(down, right)
    return steps


def canny(record: Record) -> Image:
    """White edges on black, by Canny's detector with thresholds 100 and 200."""
    edges = np.max(
        [cv2.Canny(np.ascontiguousarray(record.image[..., c]), 100, 200) for c in range(3)], axis=0
    )
    return _gray(edges.astype(np.float32))


def soft_edge(record: Record) -> Image:
    """Blurred edge strength, white on black: the look of HED maps, without its network."""
    strength = cv2.GaussianBlur(_steps(record.image), (3, 3), 0.8)
    return _gray(255 * strength / max(float(strength.max()), 1.0))


def lineart(record: Record) -> Image:
    """Dark lines on white wherever the picture changes by more than 30 levels."""
    return _gray(np.where(_steps(record.image) > 30, 20.0, 255.0).astype(np.float32))


def depth(record: Record) -> Image:
    """The record's depth, white nearest."""
    if record.depth is None:
        raise MissingMetadataError(
            f"control: record {record.id!r} has no depth map; add `depth` to its metadata"
        )
    return _gray(255 * record.depth)


def segmentation(record: Record) -> Image:
    """The record's classes, each in its colour.

    Raises:
        MissingMetadataError: The record has no classes, or numbers that no class can have.
    """
    if record.segmentation is None:
        raise MissingMetadataError(
            f"control: record {record.id!r} has no segmentation; add `segmentation` to its metadata"
        )
    lowest, highest = int(record.segmentation.min()), int(record.segmentation.max())
    if lowest < 0 or highest >= CLASSES:
        raise MissingMetadataError(
            f"control: the segmentation of record {record.id!r} has class numbers from {lowest} to "
            f"{highest}; expected 0 (the background) to {CLASSES - 1}. Number its classes anew, without gaps"
        )
    return CLASS_COLOURS[record.segmentation]


def _gray(values: NDArray[np.float32]) -> Image:
    return np.repeat(np.rint(values).clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)


MAPS: dict[str, Callable[[Record], Image]] = {
    "canny": canny,
    "depth": depth,
    "soft_edge": soft_edge,
    "lineart": lineart,
    "segmentation": segmentation,
}


def available_kinds(record: Record) -> list[str]:
    """The maps that this record allows: edges always, depth and classes where the record has them."""
    missing = {"depth": record.depth is None, "segmentation": record.segmentation is None}
    return [kind for kind in MAPS if kind in record.maps or not missing.get(kind, False)]


def control_map(record: Record, kind: str) -> Image:
    """The map that the record's data set stores, or else the one made from the record."""
    return record.maps[kind] if kind in record.maps else MAPS[kind](record)


def control(record: Record, seed: int) -> Example:
    """Make a control example.

    The kind of map is uniform over those that the record allows (CoLoGen, training data).
    """
    rng = view_rng("control", record.id, seed)
    kind = pick(rng, available_kinds(record))
    return control_example(record, kind)


def control_example(record: Record, kind: str) -> Example:
    """The example of one kind of map."""
    prompt = f"{PROMPTS[kind]} {record.caption}"
    meta = {"scene": record.scene}
    source = control_map(record, kind)
    return Example(record.id, "control", kind, source, record.image, prompt, meta, record.origin, ALL_FIXED)

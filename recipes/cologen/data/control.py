"""The control view: a map of the picture (edges, depth, lines, classes) as source, the picture as target."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.cologen.data.record import Example, Image, MissingMetadataError, Record
from recipes.cologen.data.seeding import view_rng
from recipes.cologen.data.world import pick

PROMPTS = {
    "canny": "canny edge to image",
    "depth": "depth map to image",
    "soft_edge": "soft edge to image",
    "lineart": "line art to image",
    "segmentation": "segmentation map to image",
}
CLASS_COLOURS: NDArray[np.uint8] = np.array(
    [
        (0, 0, 0),
        (180, 60, 120),
        (110, 190, 40),
        (20, 110, 200),
        (230, 160, 200),
        (90, 20, 10),
        (10, 220, 180),
    ],
    dtype=np.uint8,
)
"""Colours of segmentation classes, in turn; class 0 is the background."""


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
    """The record's classes, each in its colour."""
    if record.segmentation is None:
        raise MissingMetadataError(
            f"control: record {record.id!r} has no segmentation; add `segmentation` to its metadata"
        )
    return CLASS_COLOURS[record.segmentation % len(CLASS_COLOURS)]


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
    return [kind for kind in MAPS if not missing.get(kind, False)]


def control(record: Record, seed: int) -> Example:
    """Make a control example.

    The kind of map is uniform over those that the record allows (CoLoGen, training data).
    """
    rng = view_rng("control", record.id, seed)
    kind = pick(rng, available_kinds(record))
    prompt = f"{PROMPTS[kind]} {record.caption}"
    return Example(
        record.id, "control", kind, MAPS[kind](record), record.image, prompt, {"scene": record.scene}
    )

"""The records that pass between sources of pictures, the five views, training and scoring.

A `Record` is one picture with everything that is known about it; a *view* (views.py) turns a record and a
seed into an `Example` of one task. Where records come from (world, folder, data sets) is not this module's
business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.cologen.data.scene import Scene
from recipes.cologen.errors import CologenError

Image = NDArray[np.uint8]
"""A picture: uint8 [height, width, 3], RGB."""
Mask = NDArray[np.bool_]
"""A region: bool [height, width]."""


ALL_FIXED = frozenset({"source", "target", "prompt"})
"""Of an example in which nothing but its choice depends on the seed."""


class MissingMetadataError(CologenError, ValueError):
    """A record lacks what a view needs (a mask, a box, a depth map, a pair ...)."""


@dataclass(frozen=True)
class Origin:
    """Where a picture comes from.

    `width` and `height` are those of the picture as stored; `scores` are what the data set says of its
    quality, by the data set's own names.
    """

    dataset: str
    revision: str | None
    licence: str
    width: int
    height: int
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordObject:
    """One thing in a picture.

    What it is called, its class, its mask and its box (x0, y0, x1, y1; end excluded).
    """

    label: str
    category: str
    mask: Mask | None
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Pair:
    """A second picture that belongs to a record.

    The result of an instruction, or the same subject elsewhere.
    """

    task: str
    image: Image
    prompt: str
    kind: str = "given"
    further: tuple[Image, ...] = ()
    """Further sources beside the record's picture."""


@dataclass(frozen=True)
class Record:
    """One picture and what is known about it.

    `depth` is float [height, width], 1 nearest, and `depth_lost` says how many pixels of the stored map held
    no finite number (they count as farthest); `segmentation` is int [height, width] of class numbers;
    `maps` are control maps that a data set stores ready-made, by the names of control.py; `annotators` make
    maps that are not stored, None where the training device has to; `scene` is the picture's own description
    when it was drawn by the world.
    """

    id: str
    image: Image
    caption: str
    objects: tuple[RecordObject, ...] = ()
    depth: NDArray[np.float32] | None = None
    depth_lost: int = 0
    segmentation: NDArray[np.int64] | None = None
    scene: Scene | None = None
    pairs: tuple[Pair, ...] = ()
    maps: Mapping[str, Image] = field(default_factory=dict)
    origin: Origin | None = None
    annotators: Mapping[str, Callable[[Image], Image] | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """What one training step or one score reads: a source, a prompt and the picture that should come out.

    `kind` names the variant of the task (`box`, `canny`, `recolour` ...). `meta["scene"]` is the scene the
    target shows and `meta["hole"]` the masked region, where the task has them; the oracle reads both. Where
    `annotator` names a map, it is made on the training device, from the picture that `source` holds until
    then.
    """

    id: str
    task: str
    kind: str
    source: Image
    target: Image
    prompt: str
    meta: dict[str, Any] = field(default_factory=dict)
    origin: Origin | None = None
    annotator: str | None = None
    further: tuple[Image, ...] = ()
    """Further source pictures, in order, beside `source`."""
    fixed: frozenset[str] = frozenset()
    """Which of `source`, `target` and `prompt` are the same for every seed that makes this kind of example:
    what may be kept in a cache."""
    seed: int = 0
    """Of its noise and timestep, where training reads it."""
    skipped: tuple[str, ...] = ()
    """What was wrong with the rows that it replaces."""
    replayed: bool = False
    """Whether it is of an earlier stage's task (training/input/replay.py)."""

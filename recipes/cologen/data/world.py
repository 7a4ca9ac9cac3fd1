"""The embedded world: an endless stream of scenes, each a function of a seed and an index, nothing else.

The world is small, so another seed alone would show many scenes again. What is held out is a tenth of all
objects-in-their-place-on-their-background: no training scene has one, held-out scenes hold nothing else.
That is true of scenes, which sources show; what a view makes of one (an object moved, dyed, added) may be
anything.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recipes.cologen.data.record import Record, RecordObject
from recipes.cologen.data.scene import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    draw,
    object_box,
    object_mask,
)

DEPTHS = (0.55, 0.95)
"""Depth of a far and a near object; the background is at 0.15."""
_DEPTH_OF_BACKGROUND = 0.15
HELD_OUT_ONE_IN = 10
"""Of so many combinations of background and object, one is held out."""
_TWO_OBJECTS = 0.7
"""Share of the scenes that have two objects."""


def pick(rng: np.random.Generator, options: tuple[str, ...] | list[str]) -> str:
    """One of the options, each equally likely."""
    return options[int(rng.integers(len(options)))]


def random_object(
    rng: np.random.Generator, place: str, colours: tuple[str, ...] = tuple(COLOURS)
) -> SceneObject:
    """A random object in a given quadrant."""
    return SceneObject(
        shape=pick(rng, SHAPES),
        size=pick(rng, tuple(SIZES)),
        colour=pick(rng, colours),
        place=place,
    )


def random_count(rng: np.random.Generator) -> int:
    """How many objects a scene has: one or two."""
    return 1 + int(rng.random() < _TWO_OBJECTS)


def random_scene(rng: np.random.Generator, num_objects: int | None = None) -> Scene:
    """One or two objects that differ in shape or colour, in different quadrants, on a random background."""
    count = num_objects if num_objects is not None else random_count(rng)
    places = [PLACES[i] for i in rng.permutation(len(PLACES))[:count]]
    objects = [random_object(rng, place) for place in places]
    while len({item.name for item in objects}) < count:
        objects = [random_object(rng, place) for place in places]
    return Scene(pick(rng, tuple(BACKGROUNDS)), ()).with_objects(*objects)


def is_held_out(background: str, item: SceneObject) -> bool:
    """Whether an object of this look, in this quadrant on this background, is kept from training."""
    combination = f"{background} {item.phrase(sized=True)}"
    return zlib.crc32(combination.encode()) % HELD_OUT_ONE_IN == 0


def scene_record(scene: Scene, identity: str, depths: tuple[float, ...]) -> Record:
    """A scene with its picture, exact masks, boxes, depth, segmentation and caption."""
    depth = np.full((16, 16), _DEPTH_OF_BACKGROUND, dtype=np.float32)
    segmentation = np.zeros((16, 16), dtype=np.int64)
    objects = []
    for item, distance in zip(scene.objects, depths, strict=True):
        mask = object_mask(item)
        depth[mask] = distance
        segmentation[mask] = 1 + SHAPES.index(item.shape)
        objects.append(RecordObject(item.name, item.shape, mask, object_box(item)))
    return Record(
        id=identity,
        image=draw(scene),
        caption=scene.caption,
        objects=tuple(objects),
        depth=depth,
        segmentation=segmentation,
        scene=scene,
    )


@dataclass(frozen=True)
class World:
    """An endless data set of scenes. The same seed and index give the same record, on every machine.

    No object of one side, where it stands on its background, is in a scene of the other: a held-out source
    cannot have been a training source.
    """

    seed: int
    held_out: bool = False
    """Whether the scenes are those that training never sees."""

    def record(self, index: int) -> Record:
        """The record at an index, from 0 up.

        Raises:
            ValueError: the index is negative.
        """
        if index < 0:
            raise ValueError(f"a world's index starts at 0, got {index}")
        rng = np.random.default_rng((self.seed, index))
        count = random_count(rng)
        scene = random_scene(rng, count)
        while any(is_held_out(scene.background, item) is not self.held_out for item in scene.objects):
            scene = random_scene(rng, count)
        order = rng.permutation(len(DEPTHS))[: len(scene.objects)]
        return scene_record(
            scene,
            f"world-{self.seed}{'-held-out' if self.held_out else ''}-{index}",
            tuple(DEPTHS[i] for i in order),
        )

    def records(self, start: int = 0) -> Iterator[Record]:
        """Stream records from an index on, without end."""
        index = start
        while True:
            yield self.record(index)
            index += 1

"""What the tiny base is pretrained on: text-to-image, and ten generic source tasks in other words.

They teach the base to read a source (a base that cannot is hardly taught by key and value
experts), and keep away from the five stages: other verbs, boxes and dyes only in the colours the stages
never ask for, objects referred to by place, shape, size or colour, but never by colour and shape together,
no holes, no control maps. `docs/recipes/cologen.md` states the overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from recipes.cologen.data.record import Example, Image
from recipes.cologen.data.scene import (
    BACKGROUNDS,
    CELL,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    cell_frame,
    cell_origin,
    draw,
    object_mask,
)
from recipes.cologen.data.vocabulary import FILLER_WORDS, MAX_TEXT_TOKENS
from recipes.cologen.data.world import pick, random_object, random_scene

BASE_COLOURS = ("cyan", "orange", "purple")
"""Colours that pretraining's instructions bring in; the stages' instructions use the other four."""
SIZED_SHARE = 0.7
"""Share of the objects whose size a text-to-image caption gives; where it does not, either size is right."""
FILLER_SHARE = 0.3
"""Share of the prompts that get meaningless words sprinkled in."""


def _reference(rng: np.random.Generator, scene: Scene, item: SceneObject) -> str:
    """A way to name an object that fits no other object of the scene."""
    ways: tuple[Callable[[SceneObject], str], ...] = (
        lambda other: other.place,
        lambda other: other.shape,
        lambda other: other.colour,
        lambda other: f"{other.size} {other.shape}",
    )
    unique = [way(item) for way in ways if Counter(way(other) for other in scene.objects)[way(item)] == 1]
    return pick(rng, unique)


def _one(rng: np.random.Generator, scene: Scene) -> tuple[SceneObject, str]:
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    return item, _reference(rng, scene, item)


Asked = tuple[str, Scene]
"""A prompt and the scene it asks for."""


def _copy(scene: Scene, rng: np.random.Generator) -> Asked:
    return "copy", scene


def _frame(scene: Scene, rng: np.random.Generator) -> Asked:
    item, reference = _one(rng, scene)
    colour = pick(rng, [name for name in BASE_COLOURS if name != item.colour])
    return f"frame {reference} {colour}", scene.exchanged(item, replace(item, frame=colour))


def _dye(scene: Scene, rng: np.random.Generator) -> Asked:
    item, reference = _one(rng, scene)
    colour = pick(rng, [name for name in BASE_COLOURS if name != item.colour])
    return f"dye {reference} {colour}", scene.exchanged(item, replace(item, colour=colour))


def _keep(scene: Scene, rng: np.random.Generator) -> Asked:
    item, reference = _one(rng, scene)
    return f"keep {reference}", replace(scene, objects=(item,))


def _drop(scene: Scene, rng: np.random.Generator) -> Asked:
    item, reference = _one(rng, scene)
    return f"drop {reference}", scene.without(item)


def _put(scene: Scene, rng: np.random.Generator) -> Asked:
    item, reference = _one(rng, scene)
    place = pick(rng, scene.free_places())
    return f"put {reference} {place}", scene.exchanged(item, replace(item, place=place))


def _plus(scene: Scene, rng: np.random.Generator) -> Asked:
    item = random_object(rng, pick(rng, scene.free_places()), BASE_COLOURS)
    return f"plus {item.phrase(sized=True)}", scene.with_objects(*scene.objects, item)


def _swap(scene: Scene, rng: np.random.Generator) -> Asked:
    item, reference = _one(rng, scene)
    new = replace(item, shape=pick(rng, SHAPES), colour=pick(rng, BASE_COLOURS), size=pick(rng, tuple(SIZES)))
    return f"swap {reference} {new.size} {new.name}", scene.exchanged(item, new)


def _bring(scene: Scene, rng: np.random.Generator) -> Asked:
    item = scene.objects[0]
    place, background = pick(rng, PLACES), pick(rng, tuple(BACKGROUNDS))
    return f"bring {place} on {background}", Scene(background, (replace(item, place=place),))


SOURCE_TASKS: dict[str, tuple[float, Callable[[Scene, np.random.Generator], Asked]]] = {
    "copy": (0.04, _copy),
    "frame": (0.11, _frame),
    "dye": (0.11, _dye),
    "keep": (0.10, _keep),
    "drop": (0.10, _drop),
    "put": (0.13, _put),
    "plus": (0.11, _plus),
    "swap": (0.11, _swap),
    "bring": (0.09, _bring),
}
TRACE_SHARE = 0.10
"""Share of the tenth source task, `trace`.

The layout of a picture in foreign colours, the look from the caption.
"""


def _foreign_colours(scene: Scene, rng: np.random.Generator) -> Image:
    """The scene's layout in colours that mean nothing; a third of the time only one-pixel outlines."""
    image = np.empty((2 * CELL, 2 * CELL, 3), dtype=np.uint8)
    image[:] = rng.integers(0, 256, size=3)
    outlines = rng.random() < 1 / 3
    colour = rng.integers(0, 256, size=3)
    for item in scene.objects:
        if not outlines:
            image[object_mask(item)] = rng.integers(0, 256, size=3)
            continue
        top, left = cell_origin(item.place)
        cell = image[top : top + CELL, left : left + CELL]
        cell[cell_frame(item.size)] = colour
    return image


def sprinkle(rng: np.random.Generator, prompt: str) -> str:
    """The prompt, sometimes with filler words at random places; never longer than the encoders read."""
    words = prompt.split()
    room = MAX_TEXT_TOKENS - 1 - len(words)
    if room > 0 and rng.random() < FILLER_SHARE:
        for _ in range(1 + int(rng.integers(min(3, room)))):
            words.insert(int(rng.integers(len(words) + 1)), pick(rng, FILLER_WORDS))
    return " ".join(words)


def text_to_image(rng: np.random.Generator) -> Example:
    """A caption and its picture; the source is empty (it is not used)."""
    scene = random_scene(rng)
    image = draw(scene)
    caption = scene.described([bool(rng.random() < SIZED_SHARE) for _ in scene.objects])
    return Example("", "text-to-image", "caption", np.zeros_like(image), image, caption, {"scene": scene})


def source_task(rng: np.random.Generator) -> Example:
    """One of the ten generic source tasks."""
    if rng.random() < TRACE_SHARE:
        scene = random_scene(rng)
        source = _foreign_colours(scene, rng)
        return Example("", "trace", "trace", source, draw(scene), f"trace {scene.caption}", {"scene": scene})
    names = list(SOURCE_TASKS)
    shares = np.array([SOURCE_TASKS[name][0] for name in names])
    name = str(rng.choice(names, p=shares / shares.sum()))
    num_objects = {"drop": 2, "keep": 2, "bring": 1}.get(name)
    scene = random_scene(rng, num_objects)
    prompt, target = SOURCE_TASKS[name][1](scene, rng)
    return Example("", name, name, draw(scene), draw(target), prompt, {"scene": target})

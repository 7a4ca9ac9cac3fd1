"""What the tiny base is pretrained on: text-to-image, and generic source tasks in words of their own.

They teach the base to read a source (a base that cannot is hardly taught by key and value experts), and keep
away from the five stages: other verbs, objects referred to by place, shape, size or colour, but never by
colour and shape together, no holes, no control maps. Some prompts lack their verb, and then mostly nothing
is to change: the base hesitates where it is not told what to do, and an expert can decide for it.
`docs/recipes/cologen.md` states the overlap.
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
    COLOURS,
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
from recipes.cologen.data.vocabulary import FILLER_WORDS, MAX_TEXT_TOKENS, SPARE_WORDS
from recipes.cologen.data.world import pick, random_object, random_scene

SIZED_SHARE = 0.7
"""Share of the objects whose size a text-to-image caption gives; where it does not, either size is right."""
FILLER_SHARE = 0.4
"""Share of the prompts that get meaningless words sprinkled in."""
WORDLESS_SHARE = 0.25
"""Share of the instructions that lack their verb."""
UNCHANGED_SHARE = 0.6
"""Share of the instructions without a verb that ask for no change."""
AMBIGUOUS_SHARE = 0.1
"""Share of the references that may fit two objects; either may then be meant."""


def _reference(rng: np.random.Generator, scene: Scene, item: SceneObject) -> str:
    """A way to name an object, as a rule one that fits no other object of the scene."""
    ways: tuple[Callable[[SceneObject], str], ...] = (
        lambda other: other.place,
        lambda other: other.shape,
        lambda other: other.colour,
        lambda other: f"{other.size} {other.shape}",
        lambda other: f"{other.size} {other.colour}",
    )
    ambiguous = rng.random() < AMBIGUOUS_SHARE
    fitting = [
        way(item)
        for way in ways
        if ambiguous or Counter(way(other) for other in scene.objects)[way(item)] == 1
    ]
    return pick(rng, fitting)


def _one(rng: np.random.Generator, scene: Scene) -> tuple[SceneObject, str]:
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    return item, _reference(rng, scene, item)


Asked = tuple[str, Scene]
"""A prompt and the scene it asks for."""


def _copy(scene: Scene, rng: np.random.Generator) -> Asked:
    return "copy", scene


def _frame(scene: Scene, rng: np.random.Generator) -> Asked:
    item, reference = _one(rng, scene)
    colour = pick(rng, [name for name in COLOURS if name != item.colour])
    return f"frame {reference} {colour}", scene.exchanged(item, replace(item, frame=colour))


def _dye(scene: Scene, rng: np.random.Generator) -> Asked:
    item, reference = _one(rng, scene)
    colour = pick(rng, [name for name in COLOURS if name != item.colour])
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
    item = random_object(rng, pick(rng, scene.free_places()))
    return f"plus {item.phrase(sized=True)}", scene.with_objects(*scene.objects, item)


def _swap(scene: Scene, rng: np.random.Generator) -> Asked:
    item, reference = _one(rng, scene)
    new = replace(
        item, shape=pick(rng, SHAPES), colour=pick(rng, tuple(COLOURS)), size=pick(rng, tuple(SIZES))
    )
    return f"swap {reference} {new.size} {new.name}", scene.exchanged(item, new)


def _bring(scene: Scene, rng: np.random.Generator) -> Asked:
    item = replace(scene.objects[0], place=pick(rng, PLACES))
    target = Scene(pick(rng, tuple(BACKGROUNDS)), (item,))
    prompt = f"bring {item.place}"
    if rng.random() < COMPANY_SHARE:
        other = random_object(rng, pick(rng, target.free_places()))
        target = target.with_objects(item, other)
        prompt += f" and {other.phrase(sized=True)}"
    return f"{prompt} on {target.background}", target


def _backdrop(scene: Scene, rng: np.random.Generator) -> Asked:
    background = pick(rng, tuple(BACKGROUNDS))
    return f"backdrop {background}", replace(scene, background=background)


COMPANY_SHARE = 0.4
"""Share of the `bring` prompts that ask for a second, new object."""
INSTRUCTIONS: dict[str, tuple[float, Callable[[Scene, np.random.Generator], Asked]]] = {
    "copy": (0.02, _copy),
    "frame": (0.11, _frame),
    "dye": (0.10, _dye),
    "keep": (0.07, _keep),
    "drop": (0.09, _drop),
    "put": (0.11, _put),
    "plus": (0.09, _plus),
    "swap": (0.12, _swap),
    "bring": (0.11, _bring),
    "backdrop": (0.04, _backdrop),
}
"""Share of each verb among the source tasks, and what it does to a scene."""
TRACE_SHARE = 0.15
"""Share of `trace` among the source tasks: a layout in foreign colours, its look from the caption."""
UNREAD_SHARE = 0.04
"""Share of plain captions beside a source that is not asked for: only the caption counts."""
CAPTIONED = ("text-to-image", "unread")
"""The tasks whose prompt is a caption: a size that it does not give may be either."""
UNNAMED = "unnamed"
"""The task of instructions without a verb; what they ask for is uncertain, so they are not scored."""


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
    """The prompt, sometimes with meaningless words at random places; never longer than the encoders read."""
    words = prompt.split()
    room = MAX_TEXT_TOKENS - 1 - len(words)
    if room > 0 and rng.random() < FILLER_SHARE:
        for _ in range(1 + int(rng.integers(min(4, room)))):
            words.insert(int(rng.integers(len(words) + 1)), pick(rng, FILLER_WORDS + SPARE_WORDS))
    return " ".join(words)


def text_to_image(rng: np.random.Generator) -> Example:
    """A caption and its picture; the source is empty (it is not used)."""
    scene = random_scene(rng)
    return _captioned(rng, scene, "text-to-image", np.zeros_like(draw(scene)))


def source_task(rng: np.random.Generator) -> Example:
    """One of the generic source tasks."""
    names = [*INSTRUCTIONS, "trace", "unread"]
    shares = np.array([*(share for share, _ in INSTRUCTIONS.values()), TRACE_SHARE, UNREAD_SHARE])
    name = str(rng.choice(names, p=shares / shares.sum()))
    if name == "trace":
        scene = random_scene(rng)
        source = _foreign_colours(scene, rng)
        return Example("", name, name, source, draw(scene), f"trace {scene.caption}", {"scene": scene})
    if name == "unread":
        scene = random_scene(rng)
        other = random_scene(rng) if rng.random() < 0.5 else _resized(rng, scene)
        return _captioned(rng, scene, name, draw(other))
    scene = random_scene(rng, {"drop": 2, "keep": 2, "bring": 1}.get(name))
    prompt, target = INSTRUCTIONS[name][1](scene, rng)
    if name != "copy" and rng.random() < WORDLESS_SHARE:
        target = scene if rng.random() < UNCHANGED_SHARE else target
        name, prompt = UNNAMED, prompt.removeprefix(f"{name} ")
    return Example("", name, name, draw(scene), draw(target), prompt, {"scene": target})


def _captioned(rng: np.random.Generator, scene: Scene, task: str, source: Image) -> Example:
    caption = scene.described([bool(rng.random() < SIZED_SHARE) for _ in scene.objects])
    return Example("", task, task, source, draw(scene), caption, {"scene": scene})


def _resized(rng: np.random.Generator, scene: Scene) -> Scene:
    objects = tuple(replace(item, size=pick(rng, tuple(SIZES))) for item in scene.objects)
    return replace(scene, objects=objects)

"""What the tiny base is pretrained on: text-to-image, and generic source tasks in words of their own.

They teach the base to read a source (a base that cannot is hardly taught by key and value experts), and keep
away from the five stages: other verbs, no holes, no control maps. An instruction's verb is either one of
pretraining's own, or a word of a dialect, or missing, or without meaning; in the last two cases mostly
nothing is to change: the base hesitates where it is not told what to do, and an expert can decide for it.
`docs/recipes/cologen.md` states the overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from recipes.cologen.data.record import Example, Image, Mask
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
from recipes.cologen.data.world import pick, random_object, random_scene
from recipes.cologen.tools.pretraining.wording import (
    SLOT,
    Wording,
    dialect_word,
    instruction,
    meaningless_word,
    random_wording,
)

SIZED_SHARE = 0.7
"""Share of the objects whose size a text-to-image caption gives; where it does not, either size is right."""
VERBS = {"own": 0.40, "dialect": 0.40, "none": 0.10, "meaningless": 0.10}
"""What stands for the verb of an instruction, and in which share of them."""
UNCHANGED_SHARE = 0.75
"""Share of the instructions without a verb, or with a meaningless one, that ask for no change."""
AMBIGUOUS_SHARE = 0.1
"""Share of the references that may fit two objects; either may then be meant."""
COMPANY_SHARE = 0.5
"""Share of the `bring` prompts that ask for a second, new object."""


def _reference(rng: np.random.Generator, scene: Scene, item: SceneObject) -> str:
    """A way to name an object, as a rule one that fits no other object of the scene."""
    ways: tuple[Callable[[SceneObject], str], ...] = (
        lambda other: other.place,
        lambda other: other.shape,
        lambda other: other.colour,
        lambda other: other.name,
        lambda other: other.name,
        lambda other: f"{other.size} {other.shape}",
        lambda other: f"{other.size} {other.name}",
    )
    ambiguous = rng.random() < AMBIGUOUS_SHARE
    fitting = [
        way(item)
        for way in ways
        if ambiguous or Counter(way(other) for other in scene.objects)[way(item)] == 1
    ]
    return pick(rng, fitting)


def _one(rng: np.random.Generator, scene: Scene, say: Wording) -> tuple[SceneObject, str]:
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    return item, say.there(_reference(rng, scene, item))


Instruction = tuple[str, Scene]
"""What a verb is said with, and the scene it asks for."""


def _copy(scene: Scene, rng: np.random.Generator, say: Wording) -> Instruction:
    return "", scene


def _in_colour(rng: np.random.Generator, say: Wording, reference: str, colour: str) -> str:
    """Name an object and a colour that is not its own."""
    if not say.sentences:
        return f"{reference} {colour}"
    forms = (
        f"{reference} {colour}",
        f"{reference} in {colour}",
        f"{reference} with a {colour} {SLOT}",
        f"a {colour} {SLOT} {pick(rng, ['at', 'to', 'on', 'of', 'with'])} {reference}",
        f"a {colour} {SLOT} {reference}",
    )
    return pick(rng, forms)


def _frame(scene: Scene, rng: np.random.Generator, say: Wording) -> Instruction:
    item, reference = _one(rng, scene, say)
    colour = pick(rng, [name for name in COLOURS if name != item.colour])
    return _in_colour(rng, say, reference, colour), scene.exchanged(item, replace(item, frame=colour))


def _dye(scene: Scene, rng: np.random.Generator, say: Wording) -> Instruction:
    item, reference = _one(rng, scene, say)
    colour = pick(rng, [name for name in COLOURS if name != item.colour])
    return _in_colour(rng, say, reference, colour), scene.exchanged(item, replace(item, colour=colour))


def _keep(scene: Scene, rng: np.random.Generator, say: Wording) -> Instruction:
    item, reference = _one(rng, scene, say)
    return reference, replace(scene, objects=(item,))


def _drop(scene: Scene, rng: np.random.Generator, say: Wording) -> Instruction:
    item, reference = _one(rng, scene, say)
    return reference, scene.without(item)


def _put(scene: Scene, rng: np.random.Generator, say: Wording) -> Instruction:
    item, reference = _one(rng, scene, say)
    place = pick(rng, scene.free_places())
    moved = scene.exchanged(item, replace(item, place=place))
    return f"{reference} {say.at(place, pick(rng, ['at', 'to', 'in', 'on']))}", moved


def _plus(scene: Scene, rng: np.random.Generator, say: Wording) -> Instruction:
    item = random_object(rng, pick(rng, scene.free_places()))
    return say.new_at(item), scene.with_objects(*scene.objects, item)


def _swap(scene: Scene, rng: np.random.Generator, say: Wording) -> Instruction:
    item, reference = _one(rng, scene, say)
    new = replace(
        item, shape=pick(rng, SHAPES), colour=pick(rng, tuple(COLOURS)), size=pick(rng, tuple(SIZES))
    )
    between = pick(rng, ["to ", "with ", "in ", ""]) if say.sentences else ""
    return f"{reference} {between}{say.new(new)}", scene.exchanged(item, new)


def _bring(scene: Scene, rng: np.random.Generator, say: Wording) -> Instruction:
    item = replace(scene.objects[0], place=pick(rng, PLACES))
    target = Scene(pick(rng, tuple(BACKGROUNDS)), (item,))
    arguments = say.at(item.place)
    if say.sentences and rng.random() < 0.6:
        arguments = f"the {SLOT} {arguments}"
    if rng.random() < COMPANY_SHARE:
        other = random_object(rng, pick(rng, target.free_places()))
        target = target.with_objects(item, other)
        arguments += f" and {say.new_at(other)}"
    return f"{arguments} on {target.background}", target


def _backdrop(scene: Scene, rng: np.random.Generator, say: Wording) -> Instruction:
    background = pick(rng, tuple(BACKGROUNDS))
    forms = (background, f"to {background}", f"the {SLOT} to {background}", f"the {SLOT} {background}")
    return pick(rng, forms if say.sentences else [background]), replace(scene, background=background)


Instruct = Callable[[Scene, np.random.Generator, Wording], Instruction]
INSTRUCTIONS: dict[str, tuple[float, Instruct]] = {
    "copy": (0.02, _copy),
    "frame": (0.11, _frame),
    "dye": (0.11, _dye),
    "keep": (0.05, _keep),
    "drop": (0.09, _drop),
    "put": (0.11, _put),
    "plus": (0.07, _plus),
    "swap": (0.12, _swap),
    "bring": (0.13, _bring),
    "backdrop": (0.05, _backdrop),
}
"""Share of each verb among the source tasks, and what it does to a scene."""
TRACE_SHARE = 0.16
"""Share of `trace` among the source tasks: a layout in foreign colours, its look from the caption."""
UNREAD_SHARE = 0.03
"""Share of plain captions beside a source that is not asked for: only the caption counts."""
CAPTIONED = ("text-to-image", "unread")
"""The tasks whose prompt is a caption: a size that it does not give may be either."""
UNNAMED = "unnamed"
"""The task of instructions without a verb; what they ask for is uncertain, so they are not scored."""


def _foreign_colours(scene: Scene, rng: np.random.Generator) -> Image:
    """The scene's layout in colours that mean nothing: filled, in one colour, blurred, outlined or boxed."""
    ground, *colours = rng.integers(0, 256, size=(1 + len(scene.objects), 3))
    image = np.empty((2 * CELL, 2 * CELL, 3), dtype=np.uint8)
    image[:] = ground
    style = pick(rng, ["filled", "one colour", "blurred", "outlined", "boxed"])
    for item, own in zip(scene.objects, colours, strict=True):
        image[_drawn(item, style)] = own if style in ("filled", "blurred") else colours[0]
    return cv2.blur(image, (3, 3)) if style == "blurred" else image


def _drawn(item: SceneObject, style: str) -> Mask:
    """The pixels of an object that a layout colours."""
    mask = object_mask(item)
    if style == "outlined":
        cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
        grown: Mask = cv2.dilate(mask.astype(np.uint8), cross) > 0
        return grown & ~mask
    if style == "boxed":
        top, left = cell_origin(item.place)
        boxed = np.zeros_like(mask)
        boxed[top : top + CELL, left : left + CELL] = cell_frame(item.size)
        return boxed
    return mask


def text_to_image(rng: np.random.Generator) -> Example:
    """A caption and its picture; the source is empty (it is not used)."""
    scene = random_scene(rng)
    return _captioned(rng, scene, "text-to-image", np.zeros_like(draw(scene)))


def source_task(rng: np.random.Generator) -> Example:
    """One of the generic source tasks; `meta["dialect"]` is the dialect it is asked in, None for none."""
    names = [*INSTRUCTIONS, "trace", "unread"]
    shares = np.array([*(share for share, _ in INSTRUCTIONS.values()), TRACE_SHARE, UNREAD_SHARE])
    name = str(rng.choice(names, p=shares / shares.sum()))
    if name == "unread":
        scene = random_scene(rng)
        other = random_scene(rng) if rng.random() < 0.5 else _resized(rng, scene)
        return _captioned(rng, scene, name, draw(other))
    say = random_wording(rng)
    if name == "trace":
        scene = random_scene(rng)
        source, target = _foreign_colours(scene, rng), scene
        arguments = say.caption(scene, [False] * len(scene.objects))
    else:
        scene = random_scene(rng, {"drop": 2, "keep": 2, "bring": 1}.get(name))
        source = draw(scene)
        arguments, target = INSTRUCTIONS[name][1](scene, rng, say)
    return _asked(rng, name, arguments, source, target)


def _asked(rng: np.random.Generator, name: str, arguments: str, source: Image, target: Scene) -> Example:
    """The example whose verb is pretraining's own, a dialect's, missing or meaningless."""
    kind = "own" if name == "copy" else str(rng.choice(list(VERBS), p=list(VERBS.values())))
    dialect, verb = None, {"own": name}.get(kind, "")
    if kind == "dialect":
        dialect, verb = dialect_word(rng, name)
    if kind == "meaningless":
        verb = meaningless_word(rng, None)
    prompt = instruction(rng, verb, arguments, dialect)
    meta = {"scene": target, "dialect": dialect}
    if kind in ("own", "dialect"):
        return Example("", name, kind, source, draw(target), prompt, meta)
    unchanged = rng.random() < UNCHANGED_SHARE
    return Example("", UNNAMED, kind, source, source if unchanged else draw(target), prompt, meta)


def _captioned(rng: np.random.Generator, scene: Scene, task: str, source: Image) -> Example:
    sized = [bool(rng.random() < SIZED_SHARE) for _ in scene.objects]
    caption = random_wording(rng).caption(scene, sized)
    return Example("", task, task, source, draw(scene), caption, {"scene": scene, "dialect": None})


def _resized(rng: np.random.Generator, scene: Scene) -> Scene:
    objects = tuple(replace(item, size=pick(rng, tuple(SIZES))) for item in scene.objects)
    return replace(scene, objects=objects)

"""The editing view: six kinds of instruction, each with the picture before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from recipes.cologen.data.customization import given_pair, paired_example
from recipes.cologen.data.record import Example, Record
from recipes.cologen.data.scene import BACKGROUNDS, SHAPES, SIZES, Scene, SceneObject, draw
from recipes.cologen.data.seeding import view_rng
from recipes.cologen.data.world import pick, random_object

EDIT_COLOURS = ("red", "green", "blue", "yellow")
"""Colours that edits bring in."""


class Edit(NamedTuple):
    """An instruction and the scene it leads to."""

    prompt: str
    scene: Scene


def _any_object(rng: np.random.Generator, scene: Scene) -> SceneObject:
    return scene.objects[int(rng.integers(len(scene.objects)))]


def recolour(scene: Scene, rng: np.random.Generator) -> Edit:
    """`make the red circle blue`."""
    item = _any_object(rng, scene)
    colour = pick(rng, [name for name in EDIT_COLOURS if name != item.colour])
    return Edit(f"make the {item.name} {colour}", scene.exchanged(item, replace(item, colour=colour)))


def remove(scene: Scene, rng: np.random.Generator) -> Edit:
    """`remove the red circle`; only where something stays."""
    item = _any_object(rng, scene)
    return Edit(f"remove the {item.name}", scene.without(item))


def add(scene: Scene, rng: np.random.Generator) -> Edit:
    """`add a small blue square at the top right`."""
    place = pick(rng, scene.free_places())
    item = random_object(rng, place, EDIT_COLOURS)
    while item.name in {other.name for other in scene.objects}:
        item = random_object(rng, place, EDIT_COLOURS)
    prompt = f"add a {item.size} {item.name} at the {place}"
    return Edit(prompt, scene.with_objects(*scene.objects, item))


def move(scene: Scene, rng: np.random.Generator) -> Edit:
    """`move the red circle to the bottom left`."""
    item = _any_object(rng, scene)
    place = pick(rng, scene.free_places())
    return Edit(f"move the {item.name} to the {place}", scene.exchanged(item, replace(item, place=place)))


def exchange(scene: Scene, rng: np.random.Generator) -> Edit:
    """`replace the red circle with a small blue square`."""
    item = _any_object(rng, scene)
    new = replace(
        item,
        shape=pick(rng, [name for name in SHAPES if name != item.shape]),
        colour=pick(rng, EDIT_COLOURS),
        size=pick(rng, tuple(SIZES)),
    )
    prompt = f"replace the {item.name} with a {new.size} {new.name}"
    return Edit(prompt, scene.exchanged(item, new))


def change_background(scene: Scene, rng: np.random.Generator) -> Edit:
    """`change the background to navy`."""
    background = pick(rng, [name for name in BACKGROUNDS if name != scene.background])
    return Edit(f"change the background to {background}", replace(scene, background=background))


EDITS: dict[str, Callable[[Scene, np.random.Generator], Edit]] = {
    "recolour": recolour,
    "remove": remove,
    "add": add,
    "move": move,
    "replace": exchange,
    "background": change_background,
}


def editing(record: Record, seed: int) -> Example:
    """Make an editing example; the kind of edit is uniform over those that the scene allows.

    Raises:
        MissingMetadataError: the record is not of the world and has no pair for the task.
    """
    rng = view_rng("editing", record.id, seed)
    if record.scene is None:
        pair = given_pair(record, "editing", rng)
        return paired_example(record, pair)
    kinds = [kind for kind in EDITS if kind != "remove" or len(record.scene.objects) > 1]
    kind = pick(rng, kinds)
    edit = EDITS[kind](record.scene, rng)
    meta = {"scene": edit.scene}
    return Example(record.id, "editing", kind, record.image, draw(edit.scene), edit.prompt, meta)

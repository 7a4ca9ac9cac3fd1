"""The customization view: the same object in a new scene that the prompt describes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from recipes.cologen.data.record import ALL_FIXED, Example, MissingMetadataError, Pair, Record
from recipes.cologen.data.scene import BACKGROUNDS, PLACES, Scene, SceneObject, draw
from recipes.cologen.data.seeding import view_rng
from recipes.cologen.data.world import pick, random_object


def given_pair(record: Record, task: str, rng: np.random.Generator) -> Pair:
    """One of the pairs that the record's metadata gives for a task.

    Raises:
        MissingMetadataError: there is none.
    """
    pairs = [pair for pair in record.pairs if pair.task == task]
    if not pairs:
        raise MissingMetadataError(
            f"{task} needs a second picture and its prompt, but record {record.id!r} has no pair for it; "
            f'add `pairs` with "task": "{task}" to its metadata'
        )
    return pairs[int(rng.integers(len(pairs)))]


def paired_example(record: Record, pair: Pair) -> Example:
    """The record's picture as source, the pair's as target."""
    return Example(
        id=record.id,
        task=pair.task,
        kind=pair.kind,
        source=record.image,
        target=pair.image,
        prompt=pair.prompt,
        origin=record.origin,
        further=pair.further,
        fixed=ALL_FIXED,
    )


def _companion(rng: np.random.Generator, subject: SceneObject, free: list[str]) -> SceneObject:
    """Another object that is not named like the subject."""
    other = random_object(rng, pick(rng, free))
    while other.name == subject.name:
        other = random_object(rng, other.place)
    return other


def customization(record: Record, seed: int) -> Example:
    """Make a customization example: one object alone as source; it moves, with new company half of the time.

    Raises:
        MissingMetadataError: the record is not of the world and has no pair for the task.
    """
    rng = view_rng("customization", record.id, seed)
    if record.scene is None:
        pair = given_pair(record, "customization", rng)
        return paired_example(record, pair)
    subject = record.scene.objects[int(rng.integers(len(record.scene.objects)))]
    source = Scene(record.scene.background, (subject,))
    place = pick(rng, [other for other in PLACES if other != subject.place])
    background = pick(rng, [name for name in BACKGROUNDS if name != source.background])
    target = Scene(background, (replace(subject, place=place),))
    prompt = f"the same object at the {place}"
    kind = "alone"
    if rng.random() < 0.5:
        kind = "with another"
        other = _companion(rng, subject, target.free_places())
        target = target.with_objects(*target.objects, other)
        prompt += f" and a {other.size} {other.name} at the {other.place}"
    meta = {"scene": target}
    return Example(
        record.id, "customization", kind, draw(source), draw(target), f"{prompt} on {background}", meta
    )

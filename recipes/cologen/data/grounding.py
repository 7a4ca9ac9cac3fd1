"""The grounding view: find what the prompt names, and show it by a box or a mask in a named colour."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from recipes.cologen.data.record import Example, Image, MissingMetadataError, Record, RecordObject
from recipes.cologen.data.scene import COLOURS, Scene
from recipes.cologen.data.seeding import view_rng
from recipes.cologen.data.world import pick

GROUNDING_KINDS = {"box": 0.4, "mask": 0.4, "instance": 0.2}
MARK_COLOURS = ("red", "green", "blue", "yellow")
"""Colours of boxes and masks in the world, where a scene's own objects have the others."""


def draw_box(image: Image, box: tuple[int, int, int, int], colour: tuple[int, int, int]) -> Image:
    """A copy with a box drawn just outside x0, y0, x1, y1, clipped at the border.

    Its lines are 1/128 of the shorter side thick, and one pixel at least.
    """
    height, width = image.shape[:2]
    thickness = max(1, round(min(height, width) / 128))
    x0, y0, x1, y1 = box
    top, left = max(0, y0 - thickness), max(0, x0 - thickness)
    bottom, right = min(height, y1 + thickness), min(width, x1 + thickness)
    out = image.copy()
    out[top:bottom, left:right] = colour
    out[y0:y1, x0:x1] = image[y0:y1, x0:x1]
    return out


def draw_mask(image: Image, item: RecordObject, colour: tuple[int, int, int], opacity: float = 1.0) -> Image:
    """A copy with the object's pixels covered by a colour.

    Raises:
        MissingMetadataError: the object has no mask.
    """
    if item.mask is None:
        raise MissingMetadataError(
            f"grounding: covering {item.label!r} with a mask needs its mask, but it has only a box; "
            "add a mask file to the record's metadata"
        )
    out = image.copy()
    blend = (1 - opacity) * image[item.mask].astype(np.float32) + opacity * np.array(colour, dtype=np.float32)
    out[item.mask] = np.rint(blend).astype(np.uint8)
    return out


def _marked_scene(record: Record, label: str, kind: str, colour: str) -> Scene | None:
    """The world's scene with the named object boxed or covered; None for other pictures."""
    if record.scene is None:
        return None
    item = next(other for other in record.scene.objects if other.name == label)
    marked = replace(item, colour=colour) if kind == "mask" else replace(item, frame=colour)
    return record.scene.exchanged(item, marked)


def _referable(record: Record) -> list[RecordObject]:
    counts = Counter(item.label for item in record.objects)
    return [item for item in record.objects if counts[item.label] == 1]


def _free_colours(record: Record, taken: set[str]) -> list[str]:
    """Mark colours that no label names, so that a mark is never mistaken for what it marks."""
    colours = MARK_COLOURS if record.scene is not None else tuple(COLOURS)
    free = [name for name in colours if name not in taken]
    if not free:
        raise MissingMetadataError(
            f"grounding: the labels of record {record.id!r} name every colour that marks are drawn in "
            f"({', '.join(colours)}); shorten the labels in its metadata"
        )
    return free


def grounding(record: Record, seed: int) -> Example:
    """Make a grounding example: box a named object, cover it, or box any instance of a class.

    Raises:
        MissingMetadataError: no object, none with a name of its own, or no mask where one is needed.
    """
    candidates = _referable(record)
    only_instances = not candidates and record.scene is None
    if only_instances:
        candidates = list(record.objects)
    if not candidates:
        raise MissingMetadataError(
            f"grounding needs an object whose label no other has, but record {record.id!r} has "
            f"{[item.label for item in record.objects] or 'no objects'}; add `objects` with distinct "
            "labels to its metadata"
        )
    rng = view_rng("grounding", record.id, seed)
    kind = str(rng.choice(list(GROUNDING_KINDS), p=list(GROUNDING_KINDS.values())))
    if only_instances:
        kind = "instance"
    if kind == "instance" and record.scene is None:
        candidates = list(record.objects)
    masked = [item for item in candidates if item.mask is not None]
    if kind == "mask" and masked:
        candidates = masked
    item = candidates[int(rng.integers(len(candidates)))]
    peers = [other for other in candidates if other.category == item.category]
    taken = {word for peer in peers for word in peer.label.split()}
    colour = pick(rng, _free_colours(record, taken))
    prompt = {
        "box": f"draw a {colour} box around the {item.label}",
        "mask": f"cover the {item.label} with a {colour} mask",
        "instance": f"draw a {colour} box around any {item.category}",
    }[kind]
    if kind == "mask":
        target = draw_mask(record.image, item, COLOURS[colour])
    else:
        target = draw_box(record.image, item.box, COLOURS[colour])
    meta: dict[str, object] = {"scene": _marked_scene(record, item.label, kind, colour)}
    if kind == "instance":
        others = (_marked_scene(record, peer.label, kind, colour) for peer in peers if peer is not item)
        meta["alternatives"] = tuple(scene for scene in others if scene is not None)
    fixed = frozenset({"source"})
    return Example(
        record.id, "grounding", kind, record.image, target, prompt, meta, record.origin, fixed=fixed
    )

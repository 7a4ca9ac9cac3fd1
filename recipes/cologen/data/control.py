"""The control view: a map of the picture (edges, depth, lines, classes) as source, the picture as target."""

from __future__ import annotations

from collections.abc import Callable

from recipes.cologen.config.annotators import MAP_KINDS
from recipes.cologen.data.annotators.opencv import OPENCV_MAPS, as_gray
from recipes.cologen.data.class_colours import CLASS_COLOURS, CLASSES
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
"""How a prompt begins that is given with a map, by its kind."""


def depth(record: Record) -> Image:
    """The record's depth, white nearest."""
    if record.depth is None:
        raise MissingMetadataError(
            f"control: record {record.id!r} has no depth map; add `depth` to its metadata"
        )
    return as_gray(255 * record.depth)


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


FROM_RECORD: dict[str, Callable[[Record], Image]] = {"depth": depth, "segmentation": segmentation}
"""Maps that are made of what a record stores beside its picture; OpenCV makes the others of the picture."""


def available_kinds(record: Record) -> list[str]:
    """The maps that this record allows: edges always, depth and classes where they are stored or made."""
    missing = {"depth": record.depth is None, "segmentation": record.segmentation is None}
    return [
        kind
        for kind in MAP_KINDS
        if kind in record.maps or kind in record.annotators or not missing.get(kind, False)
    ]


def _is_stored(record: Record, kind: str) -> bool:
    given = {"depth": record.depth, "segmentation": record.segmentation}
    return kind in record.maps or given.get(kind) is not None


def control_map(record: Record, kind: str) -> Image | None:
    """The map that is stored; else what the record's annotator makes; else the one made without any.

    None: the annotator runs on the training device, which is yet to make it.
    """
    if kind in record.maps:
        return record.maps[kind]
    if kind in record.annotators and not _is_stored(record, kind):
        annotator = record.annotators[kind]
        return None if annotator is None else annotator(record.image)
    return FROM_RECORD[kind](record) if kind in FROM_RECORD else OPENCV_MAPS[kind](record.image)


def control(record: Record, seed: int) -> Example:
    """Make a control example.

    The kind of map is uniform over those that the record allows (CoLoGen, training data).
    """
    rng = view_rng("control", record.id, seed)
    return control_example(record, pick(rng, available_kinds(record)))


def control_example(record: Record, kind: str) -> Example:
    """The example of one kind of map."""
    source = control_map(record, kind)
    return Example(
        id=record.id,
        task="control",
        kind=kind,
        source=record.image if source is None else source,
        target=record.image,
        prompt=f"{PROMPTS[kind]} {record.caption}",
        meta={"scene": record.scene},
        origin=record.origin,
        annotator=kind if source is None else None,
        # What is still to be made is not there yet to be known by a key.
        fixed=ALL_FIXED if source is not None else ALL_FIXED - {"source"},
    )

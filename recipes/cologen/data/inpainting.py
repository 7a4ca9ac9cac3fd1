"""The inpainting view: a hole in the picture, the caption as prompt, the whole picture as target."""

from __future__ import annotations

import zlib

import numpy as np

from recipes.cologen.data.masks import bezier_mask, random_mask
from recipes.cologen.data.record import (
    ALL_FIXED,
    Example,
    Mask,
    MissingMetadataError,
    Record,
    RecordObject,
)
from recipes.cologen.data.seeding import view_rng

MASK_KINDS = {"random": 0.2, "object": 0.4, "bezier": 0.4}
"""Proportions of the three mask kinds (CoLoGen, training data)."""


_TURNS = ("random", "object", "bezier", "object", "bezier")


def mask_kind(record: Record, seed: int, rng: np.random.Generator) -> str:
    """Which kind of hole a record gets.

    The world's records draw lots. Others take turns: a hash of the id says where in the cycle of five a
    record is, so any five seeds in a row give one random, two object-shaped and two Bezier holes, exactly.
    """
    if record.scene is not None:
        return str(rng.choice(list(MASK_KINDS), p=list(MASK_KINDS.values())))
    return _TURNS[(zlib.crc32(record.id.encode()) + seed) % len(_TURNS)]


def hole_of(record: Record, kind: str, rng: np.random.Generator) -> Mask:
    """The region to paint over: bool [height, width], neither empty nor everything."""
    height, width = record.image.shape[:2]
    masks = [item.mask for item in record.objects if item.mask is not None]
    if kind == "random":
        return random_mask(rng, height, width, masks)
    partial = [item for item in record.objects if not _covers_all(item, kind, height, width)]
    masked = [item for item in partial if item.mask is not None]
    candidates = partial if kind == "bezier" or not masked else masked
    if not candidates:
        raise _nothing_left(record)
    chosen = candidates[int(rng.integers(len(candidates)))]
    if kind == "bezier":
        hole = bezier_mask(rng, height, width, chosen.box)
        if hole.all():
            raise _nothing_left(record)
        return hole
    if chosen.mask is None:
        raise MissingMetadataError(
            f"inpainting: an object-shaped hole needs the object's mask, but {chosen.label!r} of record "
            f"{record.id!r} has only a box; add a mask file to its metadata"
        )
    return chosen.mask


def _covers_all(item: RecordObject, kind: str, height: int, width: int) -> bool:
    """Whether a hole of this kind would leave nothing of the picture beside the object."""
    if kind == "object" and item.mask is not None:
        return bool(item.mask.all())
    return item.box[0] <= 0 and item.box[1] <= 0 and item.box[2] >= width and item.box[3] >= height


def _nothing_left(record: Record) -> MissingMetadataError:
    return MissingMetadataError(
        f"inpainting: the hole of an object of record {record.id!r} would be the whole picture, which leaves "
        "nothing to go on; name smaller objects in its metadata"
    )


def inpainting(record: Record, seed: int) -> Example:
    """Make an inpainting example: the hole is black in the source.

    Raises:
        MissingMetadataError: the record names no objects, or none that has the mask it needs.
    """
    if not record.objects:
        raise MissingMetadataError(
            "inpainting needs objects with boxes or masks (80% of its holes follow one), but record "
            f"{record.id!r} has none; add `objects` to its metadata"
        )
    rng = view_rng("inpainting", record.id, seed)
    kind = mask_kind(record, seed, rng)
    hole = hole_of(record, kind, rng)
    source = record.image.copy()
    source[hole] = 0
    meta = {"hole": hole, "scene": record.scene}
    fixed = ALL_FIXED - {"source"}
    return Example(
        id=record.id,
        task="inpainting",
        kind=kind,
        source=source,
        target=record.image,
        prompt=record.caption,
        meta=meta,
        origin=record.origin,
        fixed=fixed,
    )

"""JourneyDB and ADE20K: pictures for inpainting that lack part of what it needs; `additions` bring it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from recipes.cologen.data.layouts.layout import Layout, Reading
from recipes.cologen.data.layouts.regions import coco_object, polygon_mask
from recipes.cologen.data.raw import RawObject, RawRecord
from recipes.cologen.data.sources.rows import Row
from recipes.cologen.data.text import text_of


def _added_objects(reading: Reading, size: tuple[int, int]) -> Iterator[RawObject]:
    for item in reading.addition.get("objects") or ():
        label = item["label"]
        yield coco_object(item, label, item.get("category") or label, size)


def _journey_caption(row: Row) -> str:
    """The caption that was written for the picture, else the prompt that made it."""
    task = row.get("Task2")
    caption = text_of(task.get("Caption")) if isinstance(task, Mapping) else ""
    return caption or text_of(row.get("prompt"))


def _journey_record(reading: Reading) -> RawRecord:
    picture = reading.picture(reading.row["img_path"])
    return RawRecord(
        id=reading.id,
        picture=picture,
        caption=_journey_caption(reading.row),
        origin=reading.origin(picture),
        objects=tuple(_added_objects(reading, picture.size[::-1])),
    )


def _ade_record(reading: Reading) -> RawRecord:
    """Objects by their outlines; parts of objects are left out."""
    picture = reading.picture(reading.row["image"])
    height, width = picture.size[::-1]
    return RawRecord(
        id=reading.id,
        picture=picture,
        caption=text_of(reading.addition.get("text")),
        origin=reading.origin(picture),
        objects=tuple(_ade_objects(reading.row, height, width)),
    )


def _ade_objects(row: Row, height: int, width: int) -> Iterator[RawObject]:
    for item in row["objects"]:
        outline, parts = item.get("polygon") or {}, item.get("parts") or {}
        if parts.get("part_level") or not outline.get("x"):
            continue
        mask = polygon_mask(outline["x"], outline["y"], height, width)
        if mask.any():
            # ADE20K lists synonyms: `sofa, couch, lounge`.
            name = item["name"].split(",")[0].strip()
            yield RawObject(name, name, mask, None)


def _no_ade_objects(row: Row, options: Mapping[str, float]) -> str | None:
    return (
        None
        if any(not (item.get("parts") or {}).get("part_level") for item in row["objects"])
        else "no objects"
    )


JOURNEYDB = Layout(
    name="journeydb",
    home="https://huggingface.co/datasets/JourneyDB/JourneyDB",
    tasks=("inpainting",),
    licence="journeydb-terms",
    columns=("img_path", "prompt"),
    light=("img_path", "prompt", "Task2"),
    texts=lambda row: [_journey_caption(row)],
    record=_journey_record,
    size="4,189,737 labelled pictures (train); gated",
    key="img_path",
    needs="objects",
)
ADE20K = Layout(
    name="ade20k",
    home="https://huggingface.co/datasets/1aurent/ADE20K",
    tasks=("inpainting",),
    licence="bsd-3-clause",
    columns=("image", "filename", "objects"),
    light=("filename", "objects"),
    reject=_no_ade_objects,
    record=_ade_record,
    size="25,574 pictures (train), 5.94 GB",
    key="filename",
    needs="text",
)

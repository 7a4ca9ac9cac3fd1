"""Your own data in parquet, arrow or tar shards: the lines of a folder's metadata.jsonl, as columns."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from PIL import Image as PilImage
from pydantic import ValidationError

from recipes.cologen.config.errors import fault_lines
from recipes.cologen.data.folder_metadata import ObjectLine
from recipes.cologen.data.layouts.layout import Layout, Reading
from recipes.cologen.data.licences import UNSTATED
from recipes.cologen.data.needs import needs_of
from recipes.cologen.data.raw import RawObject, RawPair, RawRecord
from recipes.cologen.data.reading import mask_of
from recipes.cologen.data.text import text_of

ALL_TASKS = ("inpainting", "grounding", "control", "customization", "editing")


def _record(reading: Reading) -> RawRecord:
    row, needs = reading.row, needs_of(reading.tasks)
    picture = reading.picture(row.get("image") or row.get("file_name"))
    objects = _plain(row.get("objects")) or () if needs.objects else ()
    depth, segmentation = (row.get(name) if needs.maps else None for name in ("depth", "segmentation"))
    pairs = [pair for pair in _plain(row.get("pairs")) or () if pair.get("task") not in needs.other_pairs]
    return RawRecord(
        id=reading.id,
        picture=picture,
        caption=text_of(row.get("text")),
        origin=reading.origin(picture, _plain(row.get("scores")) or {}),
        objects=tuple(_object(reading, item, picture) for item in objects),
        depth=reading.picture(depth) if depth else None,
        segmentation=np.asarray(reading.picture(segmentation), dtype=np.int32) if segmentation else None,
        pairs=tuple(_pair(reading, pair) for pair in pairs),
    )


def _plain(value: Any) -> Any:
    """A column of structs; tables that have none hold it as JSON."""
    return json.loads(value) if isinstance(value, str) else value


def _object(reading: Reading, item: Any, picture: PilImage.Image) -> RawObject:
    mask = None
    if item.get("mask"):
        mask = mask_of(reading.picture(item["mask"]))
    try:
        line = ObjectLine(label=item.get("label"), category=item.get("category"), bbox=item.get("bbox"))
    except ValidationError as error:
        raise reading.broken(f"an object: {fault_lines(error, ObjectLine)[0]}") from error
    if mask is None and line.bbox is None:
        raise reading.broken(f"object {line.label!r} has neither bbox nor mask")
    if line.bbox is not None and not _is_inside(line.bbox, picture.size):
        raise reading.broken(
            f"the bbox {list(line.bbox)} of {line.label!r} is not inside the picture of "
            f"{picture.width}x{picture.height}; it should be [x0, y0, x1, y1], end excluded"
        )
    return RawObject(line.label, line.category or line.label, mask, line.bbox)


def _is_inside(box: tuple[int, int, int, int], size: tuple[int, int]) -> bool:
    return 0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1]


def _pair(reading: Reading, pair: Any) -> RawPair:
    if pair.get("task") not in ("customization", "editing"):
        raise reading.broken(f"a pair's task is {pair.get('task')!r}; expected 'customization' or 'editing'")
    prompt, kind = text_of(pair.get("prompt")), pair.get("kind") or "given"
    further = tuple(reading.picture(value) for value in pair.get("sources") or ())
    return RawPair(pair["task"], reading.picture(pair.get("image")), prompt, kind, further)


def _paired_record(reading: Reading) -> RawRecord:
    source, target = reading.picture(reading.row.get("source")), reading.picture(reading.row.get("target"))
    prompt = text_of(reading.row.get("text"))
    pairs = tuple(RawPair(task, target, prompt) for task in reading.tasks)
    return RawRecord(reading.id, source, prompt, reading.origin(source), pairs=pairs)


OWN = Layout(
    name="own",
    home="your own",
    tasks=ALL_TASKS,
    licence=UNSTATED,
    columns=("image", "text"),
    light=("text",),
    texts=lambda row: [row.get("text")],
    record=_record,
)
PAIRED = Layout(
    name="paired",
    home="your own",
    tasks=("editing", "customization"),
    licence=UNSTATED,
    columns=("source", "target", "text"),
    light=("text",),
    texts=lambda row: [row.get("text")],
    record=_paired_record,
)

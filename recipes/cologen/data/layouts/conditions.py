"""MultiGen-20M and the captioned ADE20K and COCO-Stuff: pictures with captions and stored control maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.cologen.data.layouts.layout import Layout, Reading
from recipes.cologen.data.layouts.regions import class_regions
from recipes.cologen.data.licences import UNSTATED
from recipes.cologen.data.raw import RawRecord
from recipes.cologen.data.text import text_of

_IGNORED = (255,)
"""Class number of pixels without a class, in both captioned sets."""


def _plain_record(reading: Reading) -> RawRecord:
    """A picture and its caption; every map but the stored depth is drawn when it is asked for."""
    row = reading.row
    picture = reading.picture(row["image"])
    depth = reading.picture(row["control_depth"]) if "control_depth" in row else None
    return RawRecord(reading.id, picture, text_of(row["text"]), reading.origin(picture), depth=depth)


def _class_map(reading: Reading, value: Any) -> NDArray[np.int32]:
    """Class numbers [height, width], which are stored as nested lists or as a gray picture."""
    if isinstance(value, list):
        return np.asarray(value, dtype=np.int32)
    return np.asarray(reading.picture(value), dtype=np.int32)


def _segmented_record(reading: Reading, column: str) -> RawRecord:
    """A picture with its stored map of classes; for inpainting its classes are the objects, too."""
    row = reading.row
    picture = reading.picture(row["image"])
    wants_objects = "inpainting" in reading.tasks
    classes = _class_map(reading, row[column]) if wants_objects else None
    if classes is not None and classes.shape != picture.size[::-1]:
        raise reading.broken(f"{column} is {classes.shape}, its picture {picture.size[::-1]} (height, width)")
    return RawRecord(
        id=reading.id,
        picture=picture,
        caption=text_of(row["prompt"]),
        origin=reading.origin(picture),
        objects=() if classes is None else class_regions(classes, _IGNORED, reading.options["min_area"]),
        maps={"segmentation": reading.picture(row["control_seg"])},
    )


MULTIGEN = Layout(
    name="multigen",
    home="https://huggingface.co/datasets/limingcv/MultiGen-20M_train",
    tasks=("control",),
    licence="cc-by-nc-4.0",
    columns=("image", "text"),
    light=("text",),
    texts=lambda row: [row["text"]],
    record=_plain_record,
    size="2,810,604 rows, 1.14 TB",
)
MULTIGEN_DEPTH = Layout(
    name="multigen_depth",
    home="https://huggingface.co/datasets/limingcv/MultiGen-20M_depth",
    tasks=("control",),
    licence="cc-by-nc-4.0",
    columns=("image", "text", "control_depth"),
    light=("text",),
    texts=lambda row: [row["text"]],
    record=_plain_record,
    size="1.22 TB",
)
CAPTIONED_ADE20K = Layout(
    name="captioned_ade20k",
    home="https://huggingface.co/datasets/limingcv/Captioned_ADE20K",
    tasks=("control", "inpainting"),
    licence=UNSTATED,
    columns=("image", "control_seg", "seg_map", "prompt"),
    light=("prompt",),
    texts=lambda row: [row["prompt"]],
    options={"min_area": 0.01},
    record=lambda reading: _segmented_record(reading, "seg_map"),
    size="about 20,000 rows",
)
CAPTIONED_COCOSTUFF = Layout(
    name="captioned_cocostuff",
    home="https://huggingface.co/datasets/limingcv/Captioned_COCOStuff",
    tasks=("control", "inpainting"),
    licence=UNSTATED,
    columns=("image", "control_seg", "prompt", "panoptic_seg_map"),
    light=("prompt",),
    texts=lambda row: [row["prompt"]],
    options={"min_area": 0.01},
    record=lambda reading: _segmented_record(reading, "panoptic_seg_map"),
    size="118,287 rows (train), 62 GB",
)

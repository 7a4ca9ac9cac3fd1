"""RefCOCO, RefCOCO+ and RefCOCOg: phrases that refer to objects of COCO pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from recipes.cologen.data.layouts.layout import Layout, Reading
from recipes.cologen.data.layouts.regions import coco_object
from recipes.cologen.data.licences import UNSTATED
from recipes.cologen.data.raw import RawRecord
from recipes.cologen.data.sources.rows import Row
from recipes.cologen.data.text import text_of

# fmt: off
COCO_CLASSES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck",
    9: "boat", 10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench",
    16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear",
    24: "zebra", 25: "giraffe", 27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase",
    34: "frisbee", 35: "skis", 36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat",
    40: "baseball glove", 41: "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle",
    46: "wine glass", 47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple",
    54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza", 60: "donut",
    61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed", 67: "dining table", 70: "toilet",
    72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard", 77: "cell phone", 78: "microwave",
    79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book", 85: "clock", 86: "vase",
    87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}
# fmt: on
"""COCO's 80 classes of things by their number, which the rows give without a name."""


def _json(value: Any) -> Any:
    """The raw_* columns hold JSON as text."""
    return json.loads(value) if isinstance(value, str) else value


def _phrases(row: Row) -> list[str]:
    sentences = row.get("sentences") or ()
    return list(dict.fromkeys(text_of(item.get("raw") or item.get("sent")) for item in sentences))


def _reject(row: Row, options: Mapping[str, float]) -> str | None:
    if row["split"] != "train" and not options["all_splits"]:
        return f"split {row['split']}"
    return None


def _record(reading: Reading) -> RawRecord:
    """Every phrase is an object of its own name; all of them share mask and box."""
    row = reading.row
    picture = reading.picture(row["image_path"].removeprefix("coco/"))
    annotation = _json(row["raw_anns"])
    phrases = [phrase for phrase in _phrases(row) if phrase]
    category = COCO_CLASSES.get(row["category_id"], "object")
    size = picture.size[::-1]
    first = coco_object(annotation, phrases[0] if phrases else category, category, size)
    return RawRecord(
        id=reading.id,
        picture=picture,
        caption=next(map(text_of, row.get("captions") or ()), ""),
        origin=reading.origin(picture),
        objects=tuple(type(first)(phrase, category, first.mask, first.box) for phrase in phrases),
    )


REFCOCO = Layout(
    name="refcoco",
    home="https://huggingface.co/datasets/jxu124/refcoco",
    tasks=("grounding",),
    licence=UNSTATED,
    columns=("image_path", "sentences", "category_id", "raw_anns", "split"),
    light=("sentences", "split"),
    texts=lambda row: _phrases(row) or [""],
    reject=_reject,
    options={"all_splits": 0},
    record=_record,
    size="42,404 + 42,278 + 42,226 phrases' objects (RefCOCO, +, g), on COCO train2014",
)

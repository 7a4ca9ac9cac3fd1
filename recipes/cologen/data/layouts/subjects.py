"""Subjects200K and UNO-1M: two pictures of one subject, each of which can be the source of the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recipes.cologen.data.layouts.layout import Layout, Reading
from recipes.cologen.data.raw import RawPair, RawRecord
from recipes.cologen.data.sources.rows import Row
from recipes.cologen.data.text import text_of

_SCORES = ("compositeStructure", "objectConsistency", "imageQuality")


def _subjects_reject(row: Row, options: Mapping[str, float]) -> str | None:
    """Rows that were not judged, or judged too low in any of the three scores, or described wrongly."""
    description, scores = row["description"] or {}, row["quality_assessment"] or {}
    if description.get("description_valid") is False:
        return "description not valid"
    values = [float(scores[name]) for name in _SCORES if scores.get(name) is not None]
    if len(values) < len(_SCORES):
        return "not scored"
    return "score too low" if min(values) < options["min_score"] else None


def _subjects_texts(row: Row) -> Sequence[Any]:
    description = row["description"] or {}
    return [description.get("description_0"), description.get("description_1")]


def _subjects_record(reading: Reading) -> RawRecord:
    """The left picture leads to the right one (variant 0), or the right one to the left (variant 1).

    The two stand side by side, each with a border of its own: by the published 1056 x 528 pixels two of
    512 with 8 pixels on all four sides, so the right one begins at 528 + 8 = 536 (2080 x 1040: two of
    1024). OminiControl's own loader (omini/train_flux/train_subject.py) takes the border between them once
    and begins at 528, which shows 8 columns of border and loses the last 8 of the picture; `right: 528` does
    the same.
    """
    both = reading.picture(reading.row["image"])
    padding = round(reading.options["padding"])
    side = both.width // 2 - 2 * padding
    if both.height != side + 2 * padding or both.width % 2:
        raise reading.broken(
            f"the picture is {both.width}x{both.height}; expected two squares side by side with a border of "
            f"{padding} pixels each (option `padding`)"
        )
    right = round(reading.options["right"]) or 3 * padding + side
    if not padding + side <= right <= both.width - side:
        raise reading.broken(
            f"the right picture cannot begin at {right} (option `right`): the left one ends at "
            f"{padding + side}, and {side} pixels of {both.width} must follow"
        )
    pictures = [both.crop((left, padding, left + side, padding + side)) for left in (padding, right)]
    return _directed(reading, pictures, _subjects_texts(reading.row), reading.row["quality_assessment"])


def _directed(
    reading: Reading, pictures: Sequence[Any], texts: Sequence[Any], scores: Mapping[str, Any] | None
) -> RawRecord:
    source, target = reading.variant, 1 - reading.variant
    kind = "forward" if source == 0 else "backward"
    pair = RawPair("customization", pictures[target], text_of(texts[target]), kind)
    return RawRecord(
        id=f"{reading.id}/{kind}",
        picture=pictures[source],
        caption=text_of(texts[source]),
        origin=reading.origin(pictures[source], scores),
        pairs=(pair,),
    )


def _uno_reject(row: Row, options: Mapping[str, float]) -> str | None:
    """Pairs below the least score; the published labels hold one impossible score, of 131,184."""
    score = (row.get("vlm_filter_cot") or {}).get("score_final")
    if not isinstance(score, (int, float)):
        return "not scored"
    if score < options["min_score"]:
        return "score too low"
    return "impossible score" if score > options["max_score"] else None


def _uno_texts(row: Row) -> Sequence[Any]:
    caption = row.get("caption") or {}
    return [caption.get("img_path1"), caption.get("img_path2")]


def _uno_record(reading: Reading) -> RawRecord:
    pictures = [reading.picture(reading.row[name]) for name in ("img_path1", "img_path2")]
    score = {"score_final": reading.row["vlm_filter_cot"]["score_final"]}
    return _directed(reading, pictures, _uno_texts(reading.row), score)


SUBJECTS200K = Layout(
    name="subjects200k",
    home="https://huggingface.co/datasets/Yuanshi/Subjects200K",
    tasks=("customization",),
    licence="apache-2.0",
    columns=("image", "quality_assessment", "description"),
    light=("quality_assessment", "description"),
    texts=_subjects_texts,
    reject=_subjects_reject,
    options={"min_score": 5, "padding": 8, "right": 0},
    record=_subjects_record,
    variants=2,
    size="about 207,000 rows",
)
UNO = Layout(
    name="uno_1m",
    home="https://huggingface.co/datasets/bytedance-research/UNO-1M",
    tasks=("customization",),
    licence="apache-2.0",
    columns=("img_path1", "img_path2", "caption", "vlm_filter_cot"),
    light=("caption", "vlm_filter_cot"),
    texts=_uno_texts,
    reject=_uno_reject,
    options={"min_score": 3.5, "max_score": 4},
    record=_uno_record,
    variants=2,
    size="about 1,000,000 rows",
)

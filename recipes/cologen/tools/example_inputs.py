"""Writes small pictures with all that the five tasks need, as parquet, as tar shards and as a folder.

They are inputs to try a run with, and show scenes of the embedded world, wider than high.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from recipes.cologen.data.record import Record
from recipes.cologen.data.views import VIEWS
from recipes.cologen.data.world import World

ACROSS, DOWN = 3, 2
"""How often a pixel of the world, which is 16 x 16, is repeated: pictures are 48 wide and 32 high."""
PICTURE, MASK, DEPTH, CLASSES, AFTER, ELSEWHERE = (
    "image",
    "mask",
    "depth_map",
    "classes",
    "after",
    "elsewhere",
)


def write_example_inputs(folder: Path, count: int = 12, seed: int = 0) -> dict[str, str]:
    """Write `count` pictures in each of the three forms, and a folder of others to measure on.

    Args:
        folder: made if missing.
        count: pictures in each form.
        seed: of the world.

    Returns:
        For `parquet`, `tar`, `folder` and `held_out`, what a data set's `path` is to say (layout `own`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = _rows(World(seed))
    paths = {kind: write(folder, [next(rows) for _ in range(count)]) for kind, write in WRITERS.items()}
    others = _rows(World(seed + 1, held_out=True))
    paths["held_out"] = _write_folder(folder, [next(others) for _ in range(count)], "held_out")
    return paths


def write_parquet(folder: Path, rows: list[dict[str, Any]]) -> str:
    """One parquet table whose pictures are bytes."""
    import datasets

    table = [{"image": row[PICTURE], **_line(row, row)} for row in rows]
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(table).to_parquet(folder / "pictures.parquet")
    return f"parquet:{folder / 'pictures.parquet'}"


def write_tar(folder: Path, rows: list[dict[str, Any]]) -> str:
    """Tar shards in webdataset's layout: pictures by extension, the rest as JSON."""
    import webdataset

    names = {key: f"{key}.png" for key in (MASK, DEPTH, CLASSES, AFTER, ELSEWHERE)}
    pattern = str(folder / "pictures-%03d.tar")
    with webdataset.ShardWriter(pattern, maxcount=max(1, len(rows) // 2), verbose=0) as shards:
        for number, row in enumerate(rows):
            members = {name: row[key] for key, name in names.items()}
            shards.write(
                {"__key__": f"{number:04}", "png": row[PICTURE], **members, "json": _line(row, names)}
            )
    return f"tar:{folder}/pictures-*.tar"


def write_folder(folder: Path, rows: list[dict[str, Any]]) -> str:
    """A folder with a `metadata.jsonl`."""
    return _write_folder(folder, rows, "pictures")


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], str]] = {
    "parquet": write_parquet,
    "tar": write_tar,
    "folder": write_folder,
}


def _write_folder(folder: Path, rows: list[dict[str, Any]], name: str) -> str:
    place = folder / name
    place.mkdir(exist_ok=True)
    lines = []
    for number, row in enumerate(rows):
        names = {key: f"{number:04}_{key}.png" for key in row if isinstance(row[key], bytes)}
        for key, file in names.items():
            (place / file).write_bytes(row[key])
        lines.append(json.dumps({"file_name": names[PICTURE], **_line(row, names)}) + "\n")
    (place / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return f"folder:{place}"


def _line(row: dict[str, Any], pictures: dict[str, Any]) -> dict[str, Any]:
    """What a row says, with `pictures` for what stands for a picture: bytes, or names of members or files."""
    edit, scene = row["prompts"]
    return {
        "text": row["text"],
        "objects": [{**row["object"], "mask": pictures[MASK]}],
        "depth": pictures[DEPTH],
        "segmentation": pictures[CLASSES],
        "pairs": [
            {"task": "editing", "image": pictures[AFTER], "prompt": edit},
            {"task": "customization", "image": pictures[ELSEWHERE], "prompt": scene},
        ],
    }


def _rows(world: World) -> Iterator[dict[str, Any]]:
    """Scenes of one object, so that "the same object" has one meaning; pictures as PNG."""
    for record in world.records():
        if len(record.objects) == 1:
            yield _row(record)


def _row(record: Record) -> dict[str, Any]:
    edited, elsewhere = (VIEWS[task](record, 0) for task in ("editing", "customization"))
    item = record.objects[0]
    x0, y0, x1, y1 = item.box
    assert item.mask is not None and record.depth is not None and record.segmentation is not None
    return {
        PICTURE: _png(record.image),
        MASK: _png(item.mask.astype(np.uint8) * 255),
        DEPTH: _png((record.depth * 255).astype(np.uint8)),
        CLASSES: _png(record.segmentation.astype(np.uint8)),
        AFTER: _png(edited.target),
        ELSEWHERE: _png(elsewhere.target),
        "text": record.caption,
        "object": {
            "label": item.label,
            "category": item.category,
            "bbox": [x0 * ACROSS, y0 * DOWN, x1 * ACROSS, y1 * DOWN],
        },
        "prompts": (edited.prompt, elsewhere.prompt),
    }


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    PilImage.fromarray(pixels.repeat(DOWN, axis=0).repeat(ACROSS, axis=1)).save(buffer, "PNG")
    return buffer.getvalue()

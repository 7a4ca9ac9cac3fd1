"""`additions`: a `.jsonl` of one's own that brings what published rows lack, matched by their file's name.

    {"file_name": "./000/a.jpg", "text": "a cat on a sofa",
     "objects": [{"label": "cat", "bbox": [x, y, width, height],
                  "segmentation": {"size": ..., "counts": ...}}]}

Boxes and segmentations are COCO's, since detectors and segmenters write them so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recipes.cologen.data.sources.json_files import JsonRows
from recipes.cologen.errors import DataSetError


def read_additions(path: str, origin: str) -> Mapping[str, Mapping[str, Any]]:
    """All lines by the name of their picture's file.

    Raises:
        DataSetError: The file is missing, or a line names no file.
    """
    rows = JsonRows(path, f"{origin}.additions")
    found: dict[str, Mapping[str, Any]] = {}
    for index in range(len(rows)):
        row = rows.row(index)
        if not isinstance(row.get("file_name"), str):
            raise DataSetError(f"{origin}.additions: {rows.name(index)} has no file_name")
        found[row["file_name"]] = row
    return found

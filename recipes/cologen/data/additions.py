"""`additions`: a `.jsonl` of one's own that brings what published rows lack, matched by their file's name.

    {"file_name": "./000/a.jpg", "text": "a cat on a sofa",
     "objects": [{"label": "cat", "bbox": [x, y, width, height],
                  "segmentation": {"size": ..., "counts": ...}}]}

Boxes and segmentations are COCO's, since detectors and segmenters write them so.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

from recipes.cologen.data.sources.json_files import JsonRows
from recipes.cologen.data.sources.packed import KeyIndex
from recipes.cologen.errors import BrokenPictureError, DataSetError


class Additions:
    """The lines of an additions file, found by the name of their picture's file.

    Held are where lines begin and hashes of their names, 33 bytes a line: JourneyDB's objects would fill the
    memory of a machine. Names match whatever their Unicode form (NFC, NFD); of several lines of one name the
    last counts.

    Args:
        path: The file.
        origin: What messages call the data set.

    Raises:
        DataSetError: The file is missing, or a line cannot be read or names no file.
    """

    def __init__(self, path: str, origin: str) -> None:
        """Look through all lines; see the class."""
        self._rows = JsonRows(path, f"{origin}.additions")
        self._has_objects = array("b")
        self._index = KeyIndex(self._names(origin))

    def get(self, name: str) -> Mapping[str, Any]:
        """What is added to the row of a file; empty where nothing is.

        Raises:
            BrokenPictureError: The line has changed since it was looked through.
        """
        key = _normal(name)
        for place in self._index.places(key):
            line = self._rows.row(place)
            if _normal(str(line.get("file_name"))) == key:
                return line
        return {}

    def has_objects(self, name: str) -> bool:
        """Whether objects are added to the row of a file, by the look through all lines: reads none."""
        places = self._index.places(_normal(name))
        return bool(places) and bool(self._has_objects[places[0]])

    def _names(self, origin: str) -> Iterator[str]:
        for place, line in enumerate(self._rows.scan(("file_name",))):
            if isinstance(line, BrokenPictureError):
                raise DataSetError(f"{origin}.additions: {line}")
            if not isinstance(line.get("file_name"), str):
                raise DataSetError(f"{origin}.additions: {self._rows.name(place)} has no file_name")
            self._has_objects.append(bool(line.get("objects")))
            yield _normal(line["file_name"])


def _normal(name: str) -> str:
    """A file's name in one Unicode form: macOS writes NFD, most others NFC."""
    return unicodedata.normalize("NFC", name)

"""Rows of JSON files: lists of objects in `.json`, one object a line in `.jsonl`."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from recipes.cologen.data.sources.rows import Row, matching_files
from recipes.cologen.errors import BrokenPictureError, DataSetError


class JsonRows:
    """The objects of some JSON files.

    A `.json` file is held in memory; of a `.jsonl` only where its lines begin.

    Args:
        path: Comma-separated paths and glob patterns.
        origin: What messages call the data set.

    Raises:
        DataSetError: No file matches, or one does not hold what it should.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, path: str, origin: str) -> None:
        """Read the lists, find the lines; see the class."""
        self._files = matching_files(path, origin)
        self._lists: dict[int, list[Any]] = {}
        self._file_of, self._place_of = array("l"), array("q")
        for number, file in enumerate(self._files):
            if file.suffix == ".jsonl":
                self._find_lines(number)
                continue
            values = _read_list(str(file), origin)
            self._lists[number] = values
            self._file_of.extend([number] * len(values))
            self._place_of.extend(range(len(values)))
        if not self._file_of:
            raise DataSetError(f"{origin}: {path} holds no rows")

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._file_of)

    def row(self, index: int) -> Row:
        """The row at an index."""
        number, place = self._file_of[index], self._place_of[index]
        if number in self._lists:
            value = self._lists[number][place]
        else:
            with self._files[number].open("rb") as lines:
                lines.seek(place)
                value = self._parse(lines.readline(), index)
        if not isinstance(value, dict):
            raise BrokenPictureError(f"{self.name(index)}: expected an object, got {value!r:.40}")
        return value

    def name(self, index: int) -> str:
        """The row's file and number."""
        return f"{self._files[self._file_of[index]].name}/{index}"

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows in order."""
        for index in range(len(self)):
            yield self.row(index) if columns else {}

    def _find_lines(self, number: int) -> None:
        place = 0
        with self._files[number].open("rb") as lines:
            for line in lines:
                if line.strip():
                    self._file_of.append(number)
                    self._place_of.append(place)
                place += len(line)

    def _parse(self, line: bytes, index: int) -> Any:
        try:
            return json.loads(line)
        except ValueError as error:
            raise BrokenPictureError(f"{self.name(index)}: not a JSON object in UTF-8 ({error})") from error


def _read_list(file: str, origin: str) -> list[Any]:
    values = read_json(file, origin)
    if not isinstance(values, list):
        raise DataSetError(f"{origin}: {file} should hold a list, but holds {type(values).__name__}")
    return values


def read_json(file: str, origin: str) -> Any:
    """What a JSON file holds.

    Raises:
        DataSetError: It is missing or no JSON.
    """
    try:
        with open(file, "rb") as content:  # noqa: PTH123 - a path from a glob stays text
            return json.load(content)
    except (OSError, ValueError) as error:
        raise DataSetError(f"{origin}: {file} cannot be read as JSON ({error})") from error

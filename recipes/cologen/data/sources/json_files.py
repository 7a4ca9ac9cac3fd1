"""Rows of JSON files: lists of objects in `.json`, one object a line in `.jsonl`."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recipes.cologen.data.sources.json_stream import json_elements
from recipes.cologen.data.sources.packed import PackedBytes
from recipes.cologen.data.sources.rows import Row, matching_files
from recipes.cologen.data.text import decoded_text, recoded_lines
from recipes.cologen.errors import BrokenPictureError, DataSetError


class JsonRows:
    """The objects of some JSON files.

    Of a `.jsonl` is held where its lines begin: 16 bytes a row. A `.json` is held as its text, in one buffer,
    and so is a `.jsonl` in UTF-16 or UTF-32, whose lines cannot be found by their bytes.

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
        self._held: dict[int, PackedBytes] = {}
        # Per row: its file, and where it begins there; of a held file its number.
        self._file_of, self._place_of = array("l"), array("q")
        for number, file in enumerate(self._files):
            held = _recoded(file, origin) if file.suffix == ".jsonl" else _list_texts(file, origin)
            if held is None:
                self._find_lines(number)
            else:
                self._hold(number, PackedBytes(held))
        if not self._file_of:
            raise DataSetError(f"{origin}: {path} holds no rows")

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._file_of)

    def row(self, index: int) -> Row:
        """The row at an index.

        Raises:
            BrokenPictureError: It is no JSON object in UTF-8.
        """
        number, place = self._file_of[index], self._place_of[index]
        if number in self._held:
            return self._parse(self._held[number][place], index)
        with self._files[number].open("rb") as lines:
            lines.seek(place)
            return self._parse(lines.readline(), index)

    def name(self, index: int) -> str:
        """The row's file and number."""
        return f"{self._files[self._file_of[index]].name}/{index}"

    def scan(self, columns: Sequence[str]) -> Iterator[Row | BrokenPictureError]:
        """All rows in order; each file is opened once."""
        if not columns:
            yield from ({} for _ in range(len(self)))
            return
        for index, content in enumerate(self._contents()):
            try:
                yield self._parse(content, index)
            except BrokenPictureError as error:
                yield error

    def _contents(self) -> Iterator[bytes]:
        """The JSON of every row, in order."""
        for number, file in enumerate(self._files):
            if number in self._held:
                yield from self._held[number]
                continue
            with file.open("rb") as lines:
                yield from (line for line in lines if line.strip())

    def _hold(self, number: int, rows: PackedBytes) -> None:
        self._held[number] = rows
        self._file_of.extend([number] * len(rows))
        self._place_of.extend(range(len(rows)))

    def _find_lines(self, number: int) -> None:
        place = 0
        with self._files[number].open("rb") as lines:
            for line in lines:
                if line.strip():
                    self._file_of.append(number)
                    self._place_of.append(place)
                place += len(line)

    def _parse(self, line: bytes, index: int) -> Row:
        try:
            value: Any = json.loads(decoded_text(line))
        except (ValueError, RecursionError) as error:
            raise BrokenPictureError(f"{self.name(index)}: not a JSON object in UTF-8 ({error})") from error
        if not isinstance(value, dict):
            raise BrokenPictureError(f"{self.name(index)}: expected an object, got {value!r:.40}")
        return value


def _list_texts(file: Path, origin: str) -> Iterator[bytes]:
    for element in json_elements(file, origin):
        if element.key is not None:
            raise DataSetError(f"{origin}: {file} should hold a list, but holds dict")
        yield element.text.encode("utf-8", "surrogatepass")


def _recoded(file: Path, origin: str) -> Iterator[bytes] | None:
    try:
        lines = recoded_lines(file)
    except BrokenPictureError as error:
        raise DataSetError(f"{origin}: {file}: {error}") from error
    return None if lines is None else (line for line in lines if line.strip())

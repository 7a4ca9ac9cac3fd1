"""Rows of tar shards in the layout of webdataset, read by index: no sample is before another.

A sample is a run of members with one name but for their extensions. Its row has every member by extension
(`jpg`, `source.png`, `cls` ...) and what the member `json` holds by key. Two shorthands: a picture `NAME.jpg`
is also there as `NAME`, the first picture without a name as `image`; `txt` is also there as `text`.
Only plain tars can be read from the middle, so compressed ones are refused.
"""

from __future__ import annotations

import json
import tarfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from recipes.cologen.data.sources.rows import Row, matching_files
from recipes.cologen.errors import BrokenPictureError, DataSetError

PICTURES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp")
_TEXTS = ("json", "txt")


class ShardRows:
    """The samples of some tar shards.

    Only where members lie is kept, in flat arrays: 24 bytes a member, 16 a sample. Headers are read when the
    shards are opened, pixels when a row is asked for.

    Args:
        path: Comma-separated paths and glob patterns.
        origin: What messages call the data set.

    Raises:
        DataSetError: No file matches; a shard is compressed, broken, or holds no samples.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, path: str, origin: str) -> None:
        """Read the headers; see the class."""
        self._files = matching_files(path, origin)
        self._extensions: list[str] = []
        # Per member: where its bytes start, how many, and which extension it has.
        self._offsets, self._sizes, self._kinds = array("q"), array("q"), array("l")
        # Per sample: its shard, and its first member.
        self._shards, self._firsts = array("l"), array("q")
        self._first_of_shard: list[int] = []
        numbers: dict[str, int] = {}
        for place, file in enumerate(self._files):
            self._first_of_shard.append(len(self._shards))
            before = len(self._shards)
            self._index(place, file, numbers, origin)
            if len(self._shards) == before:
                raise DataSetError(f"{origin}: {file} holds no samples; expected members such as 0001.jpg")
        self._extensions = list(numbers)
        self._firsts.append(len(self._offsets))

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self._shards)

    def row(self, index: int) -> Row:
        """The sample at an index."""
        return self._read(index, None)

    def name(self, index: int) -> str:
        """The shard, and the place of the sample in it."""
        shard = self._shards[index]
        return f"{self._files[shard].name}/{index - self._first_of_shard[shard]}"

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """All samples in order, without their pictures."""
        for index in range(len(self)):
            yield self._read(index, _TEXTS) if columns else {}

    def _index(self, place: int, file: Path, numbers: dict[str, int], origin: str) -> None:
        split_name = _name_splitter(origin)
        before = None
        try:
            with tarfile.open(file, "r:") as shard:
                while (member := shard.next()) is not None:
                    key, extension = split_name(member.name)
                    if not member.isfile() or key is None:
                        continue
                    if key != before:
                        self._shards.append(place)
                        self._firsts.append(len(self._offsets))
                        before = key
                    self._offsets.append(member.offset_data)
                    self._sizes.append(member.size)
                    self._kinds.append(numbers.setdefault(extension.lower(), len(numbers)))
        except (tarfile.TarError, OSError) as error:
            raise DataSetError(
                f"{origin}: {file} cannot be read as a plain tar ({error}). Unpack a compressed shard "
                "first: gunzip FILE.tar.gz"
            ) from error

    def _read(self, index: int, only: Sequence[str] | None) -> Row:
        """A sample's members, or only those with certain extensions."""
        members: dict[str, Any] = {}
        with self._files[self._shards[index]].open("rb") as shard:
            for member in range(self._firsts[index], self._firsts[index + 1]):
                extension = self._extensions[self._kinds[member]]
                if only is None or extension in only:
                    shard.seek(self._offsets[member])
                    members[extension] = shard.read(self._sizes[member])
        return self._with_shorthands(members, self.name(index))

    def _with_shorthands(self, members: dict[str, Any], name: str) -> Row:
        row: dict[str, Any] = {}
        for extension, content in members.items():
            stem, _, last = extension.rpartition(".")
            if last in PICTURES:
                row.setdefault(stem or "image", content)
        try:
            if "txt" in members:
                row["text"] = members["txt"].decode("utf-8").strip()
            values = json.loads(members["json"]) if "json" in members else {}
        except ValueError as error:
            raise BrokenPictureError(
                f"{name}: its text is not UTF-8, or its json no JSON ({error})"
            ) from error
        return {**row, **members, **(values if isinstance(values, dict) else {})}


def _name_splitter(origin: str) -> Callable[[str], tuple[str | None, str]]:
    """Webdataset's own rule of where a member's name ends and its extension begins."""
    try:
        from webdataset.tariterators import base_plus_ext
    except ImportError as error:
        raise DataSetError(
            f"{origin}: tar shards are read with `webdataset`: pip install 'prw[cologen]'"
        ) from error
    return base_plus_ext  # type: ignore[no-any-return]

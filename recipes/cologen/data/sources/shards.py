"""Rows of tar shards in the layout of webdataset, read by index: no sample is before another.

A sample is all members of one shard with one name but for their extensions, next to each other or not. Its
row has every member by extension (`jpg`, `source.png`, `cls` ...) and what the member `json` holds by key.
Two shorthands: a picture `NAME.jpg` is also there as `NAME`, the first picture without a name as `image`;
`txt` is also there as `text`.
Only plain tars can be read from the middle, so compressed ones are refused.
"""

from __future__ import annotations

import json
import tarfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes.cologen.data.sources.rows import Row, is_system_file, matching_files
from recipes.cologen.data.text import decoded_text
from recipes.cologen.errors import BrokenPictureError, DataSetError

PICTURES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp")
_TEXTS = ("json", "txt")


class _Member(NamedTuple):
    """Where the bytes of a member start, how many they are, and the number of its extension."""

    offset: int
    size: int
    kind: int


class ShardRows:
    """The samples of some tar shards.

    Only where members lie is kept, in flat arrays: 24 bytes a member, 16 a sample. Headers are read when the
    shards are opened, pixels when a row is asked for. What an operating system wrote (`._a.jpg`,
    `.DS_Store`, `__MACOSX/`) is no member. A member that a sample has already begins another sample of its
    name.

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

    def scan(self, columns: Sequence[str]) -> Iterator[Row | BrokenPictureError]:
        """All samples in order, without their pictures."""
        for index in range(len(self)):
            try:
                yield self._read(index, _TEXTS) if columns else {}
            except BrokenPictureError as error:
                yield error

    def _index(self, place: int, file: Path, numbers: dict[str, int], origin: str) -> None:
        """Find the members of one shard and keep them sample by sample, in the order of first members."""
        split_name = _name_splitter(origin)
        samples: list[list[_Member]] = []
        open_samples: dict[str, int] = {}
        try:
            with tarfile.open(file, "r:") as shard:
                while (member := shard.next()) is not None:
                    key, extension = split_name(member.name)
                    if not member.isfile() or key is None or is_system_file(member.name):
                        continue
                    kind = numbers.setdefault(extension.lower(), len(numbers))
                    number = open_samples.get(key)
                    if number is None or any(kind == other.kind for other in samples[number]):
                        open_samples[key] = number = len(samples)
                        samples.append([])
                    samples[number].append(_Member(member.offset_data, member.size, kind))
        except (tarfile.TarError, OSError) as error:
            raise DataSetError(
                f"{origin}: {file} cannot be read as a plain tar ({error}). Unpack a compressed shard "
                "first: gunzip FILE.tar.gz"
            ) from error

        for sample in samples:
            self._shards.append(place)
            self._firsts.append(len(self._offsets))
            for one in sample:
                self._offsets.append(one.offset)
                self._sizes.append(one.size)
                self._kinds.append(one.kind)

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
                row["text"] = decoded_text(members["txt"]).strip()
        except BrokenPictureError as error:
            raise BrokenPictureError(f"{name}: {error}") from error
        try:
            values = json.loads(decoded_text(members["json"])) if "json" in members else {}
        except (ValueError, RecursionError) as error:
            raise BrokenPictureError(f"{name}: its json is no JSON in UTF-8 ({error})") from error
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

"""Rows, which every kind of source gives: a length and a row by its index; and a row's pictures."""

from __future__ import annotations

import glob
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image as PilImage

from recipes.cologen.data.decoding import open_upright, upright_stand_in
from recipes.cologen.errors import BrokenPictureError, DataSetError

Row = Mapping[str, Any]
"""One row by its columns; pictures are undecoded: bytes, a struct of bytes and path, or a file's name."""


class Rows(Protocol):
    """A finite list of rows. A worker process may hold a copy of it."""

    columns: tuple[str, ...]
    """What every row has; empty where rows need not be alike."""

    def __len__(self) -> int:
        """How many rows there are."""

    def row(self, index: int) -> Row:
        """The row at an index."""

    def name(self, index: int) -> str:
        """What messages and ids call a row."""

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows in order, some columns of each: cheap, since pictures are left out."""


def is_remote(path: str) -> bool:
    """Whether a path is an address such as https://... or hf://..."""
    return "://" in path


def matching_files(pattern: str, origin: str) -> list[Path]:
    """The files that a comma-separated list of paths and glob patterns names; each pattern's are sorted.

    Raises:
        DataSetError: A pattern matches nothing, or is the address of a remote file.
    """
    files: list[Path] = []
    for part in pattern.split(","):
        if is_remote(part):
            raise DataSetError(
                f"{origin}: {part} is not on this machine. Tar shards and annotation files are read in "
                "place, here and there in them, so fetch them first, for example with `hf download "
                "--repo-type dataset` or curl; parquet files may be remote (parquet:https://..., parquet:hf://...)"
            )
        # Not Path.glob: a pattern may begin at the root, or name a file with marks in its path.
        found = sorted(glob.glob(str(Path(part).expanduser()), recursive=True))  # noqa: PTH207
        if Path(part).expanduser().is_file():
            found = [str(Path(part).expanduser())]
        if not found:
            raise DataSetError(f"{origin}: no file matches {part!r}; check the path")
        files.extend(Path(name) for name in found)
    return files


def open_picture(
    value: Any, row: Row, root: Path | None, name: str, *, sizes_only: bool = False
) -> PilImage.Image:
    """The picture that a row's value stands for, upright.

    Args:
        value: Bytes, a struct {bytes, path}, or a name: of another member of the row, else of a file below
            `root`.
        row: The row itself.
        root: The folder that names of files start from.
        name: What messages call the row.
        sizes_only: Read the header alone, and give a black picture of that size.

    Raises:
        BrokenPictureError: There is no picture, or it cannot be decoded. Nothing takes its place.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and isinstance(row.get(value), bytes):
        value = row[value]
    if not value:
        raise BrokenPictureError(f"{name}: a picture is missing")
    where: Path | io.BytesIO = io.BytesIO(value) if isinstance(value, bytes) else _below(value, root, name)
    try:
        return upright_stand_in(where) if sizes_only else open_upright(where)
    except (OSError, SyntaxError, ValueError, PilImage.DecompressionBombError) as error:
        what = "a picture" if isinstance(value, bytes) else value
        raise BrokenPictureError(f"{name}: {what} cannot be decoded ({error})") from error


def _below(value: Any, root: Path | None, name: str) -> Path:
    if not isinstance(value, str):
        raise BrokenPictureError(f"{name}: {type(value).__name__} is no picture")
    path = Path(value.removeprefix("./"))
    return path if root is None else root / path

"""Rows, which every kind of source gives: a length and a row by its index; and a row's pictures."""

from __future__ import annotations

import errno
import glob
import io
import struct
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import cv2
from PIL import Image as PilImage

from recipes.cologen.data.decoding import open_upright, upright_stand_in
from recipes.cologen.errors import BrokenPictureError, DataSetError

Row = Mapping[str, Any]
"""One row by its columns; pictures are undecoded: bytes, a struct of bytes and path, or a file's name."""


ROW_FAULTS = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
    *(cv2.error, struct.error),
)
"""What code that reads a row may raise when the row is not as its layout expects; such a row is skipped and
counted. A lack of memory or a read that fails (`OSError`) is not among them: it says nothing about the row.
What a picture's decoder raises is a `BrokenPictureError` by then."""
_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
_SYSTEM_FILES = ("._", ".DS_Store", "Thumbs.db", "desktop.ini")
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")


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

    def scan(self, columns: Sequence[str]) -> Iterator[Row | BrokenPictureError]:
        """All rows in order, some columns of each: cheap, since pictures are left out.

        A row that cannot be read is there as its error, so that the rows after it are read all the same.
        """


def is_remote(path: str) -> bool:
    """Whether a path is an address such as https://... or hf://..."""
    return "://" in path


def is_system_file(name: str) -> bool:
    """Whether an operating system wrote a file of this name beside what the user put there.

    Such as `._a.jpg` and `__MACOSX/`, in which macOS keeps what other systems have no place for, and
    `Thumbs.db`.
    """
    parts = PurePosixPath(name).parts
    return bool(parts) and (
        parts[-1].startswith(_SYSTEM_FILES) or any(part in _SYSTEM_FOLDERS for part in parts)
    )


def existing_path(root: Path | None, name: str) -> Path:
    """The file of a name below a folder, whatever Unicode form its letters have on disk.

    One letter may be written in several ways: macOS stores an é as two characters (NFD) where most others
    have one (NFC). The name as it is given comes first, then either form of each of its parts. A file that is
    not there at all comes back as it was named.
    """
    plain = Path(name) if root is None else root / name
    if name.isascii() or _exists(plain):
        return plain
    return next(_spelled(Path() if root is None else root, Path(name).parts), plain)


def _exists(path: Path) -> bool:
    """Whether there is such a file; no file has a name that is too long for one."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def _spelled(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """The paths below a folder whose parts are spelled so, in either Unicode form."""
    if not parts:
        yield folder
        return
    for spelling in dict.fromkeys((parts[0], *(unicodedata.normalize(form, parts[0]) for form in _FORMS))):
        if _exists(folder / spelling):
            yield from _spelled(folder / spelling, parts[1:])


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
        matches = sorted(glob.glob(str(Path(part).expanduser()), recursive=True))  # noqa: PTH207
        found = [name for name in matches if not is_system_file(name)]
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
    except BrokenPictureError as error:
        what = "a picture" if isinstance(value, bytes) else value
        raise BrokenPictureError(f"{name}: {what} cannot be decoded ({error})") from error


def _below(value: Any, root: Path | None, name: str) -> Path:
    if not isinstance(value, str):
        raise BrokenPictureError(f"{name}: {type(value).__name__} is no picture")
    return existing_path(root, value.removeprefix("./"))

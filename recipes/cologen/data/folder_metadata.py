"""`metadata.jsonl`, the list of a folder's pictures: its lines, and checks of the files they name.

What is wrong is found when the folder is opened, and named by file and line; pixels are not decoded here.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from recipes.cologen.config.errors import fault_lines
from recipes.cologen.data.decoding import decoding, stored_size
from recipes.cologen.data.sources.packed import PackedBytes
from recipes.cologen.data.sources.rows import existing_path
from recipes.cologen.data.text import cleaned, decoded_text, recoded_lines, text_of
from recipes.cologen.errors import BrokenPictureError, FolderDataError

METADATA = "metadata.jsonl"
SHOWN_FAULTS = 10
Box = tuple[int, int, int, int]


def _given_text(value: Any) -> Any:
    """Of a list of captions the first that says something; a text without byte order marks."""
    if isinstance(value, str):
        return cleaned(value)
    return text_of(value) if isinstance(value, list) and value else value


Text = Annotated[str, BeforeValidator(_given_text), Field(min_length=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ObjectLine(_Settings):
    """One object of a picture: its name, its class (else the name), and a box, a mask file or both."""

    label: Text
    category: str | None = None
    bbox: Box | None = None
    mask: str | None = None


class PairLine(_Settings):
    """A second picture: what an instruction makes of the first, or the same subject in another scene."""

    task: Literal["customization", "editing"]
    image: str
    prompt: Text
    kind: str = "given"
    sources: tuple[str, ...] = ()
    """Further source pictures beside the line's own, such as a second subject."""


class PictureLine(_Settings):
    """One line of `metadata.jsonl`."""

    file_name: str
    text: Text
    objects: tuple[ObjectLine, ...] = ()
    depth: str | None = None
    segmentation: str | None = None
    pairs: tuple[PairLine, ...] = ()


class Entry(NamedTuple):
    """A checked line and where it stands."""

    number: int
    line: PictureLine


class Entries:
    """The checked lines of a folder's metadata, held as their text and parsed when one is asked for."""

    def __init__(self, folder: Path, lines: Iterable[tuple[int, bytes]]) -> None:
        """Take lines with their numbers."""
        self._folder = folder
        self._numbers, self._lines = array("q"), PackedBytes()
        for number, line in lines:
            self._numbers.append(number)
            self._lines.append(line)

    def __len__(self) -> int:
        """How many lines there are."""
        return len(self._lines)

    def __getitem__(self, index: int) -> Entry:
        """The line at an index from 0 up."""
        number = self._numbers[index]
        return Entry(number, _parse(self._folder, number, self._lines[index]))

    def __iter__(self) -> Iterator[Entry]:
        """All lines in order."""
        return (self[index] for index in range(len(self)))


def fault(folder: Path, number: int, problem: str) -> FolderDataError:
    """The error for a problem on one line of the metadata."""
    return FolderDataError(f"{folder / METADATA}, line {number}: {problem}.")


def read_entries(folder: Path) -> Entries:
    """Every line of the metadata, checked for its form, and the files that it names.

    Raises:
        FolderDataError: There is no folder or metadata; or lines have faults, of which the first are told.
    """
    faults: list[FolderDataError] = []
    entries = Entries(folder, _checked(folder, faults))
    if len(faults) == 1:
        raise faults[0]
    if faults:
        shown = "\n".join(f"  {error}" for error in faults[:SHOWN_FAULTS])
        more = f"\n  and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise FolderDataError(f"{len(faults)} lines of {folder / METADATA} have faults:\n{shown}{more}")
    return entries


def _checked(folder: Path, faults: list[FolderDataError]) -> Iterator[tuple[int, bytes]]:
    """The lines without fault, with their numbers; faults of the others are added to a list."""
    for number, raw in _lines(folder):
        try:
            check_files(folder, Entry(number, _parse(folder, number, raw)))
        except FolderDataError as error:
            faults.append(error)
        else:
            yield number, raw


def _lines(folder: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of the metadata that are not empty, with their numbers."""
    path = folder / METADATA
    if not folder.is_dir():
        raise FolderDataError(
            f"{folder} is not a folder. --data folder:PATH wants one with pictures and a {METADATA}."
        )
    if not path.is_file():
        raise FolderDataError(
            f"{folder} has no {METADATA}. Write one line for each picture, such as "
            '{"file_name": "cat.jpg", "text": "a cat"}.'
        )
    found = False
    for number, raw in enumerate(_byte_lines(path), start=1):
        if raw.strip():
            found = True
            yield number, raw
    if not found:
        raise FolderDataError(f"{path} is empty. Write one line for each picture.")


def _byte_lines(path: Path) -> Iterator[bytes]:
    """The lines of a text file as UTF-8; of one in UTF-16 or UTF-32, as its mark says, too."""
    try:
        recoded = recoded_lines(path)
    except BrokenPictureError as error:
        raise FolderDataError(f"{path}: {error}.") from error
    if recoded is not None:
        yield from recoded
        return
    with path.open("rb") as lines:
        for line in lines:
            yield from line.splitlines()


def _parse(folder: Path, number: int, raw: bytes) -> PictureLine:
    try:
        values = json.loads(decoded_text(raw))
    except (ValueError, RecursionError) as error:
        raise fault(folder, number, f"not a JSON object in UTF-8 ({error})") from error
    try:
        return PictureLine.model_validate(values)
    except ValidationError as error:
        raise fault(folder, number, fault_lines(error, PictureLine)[0]) from error


def check_files(folder: Path, entry: Entry) -> None:
    """Every file that a line names is there, is a picture, and has the size it must have."""
    line, number = entry.line, entry.number
    width, height = _size(folder, number, line.file_name)
    beside = [name for name in (line.depth, *(item.mask for item in line.objects)) if name is not None]
    for name in [*beside, *([line.segmentation] if line.segmentation else [])]:
        if (found := _size(folder, number, name)) != (width, height):
            raise fault(
                folder,
                number,
                f"{name} is {found[0]}x{found[1]} pixels, its picture {line.file_name} {width}x{height}",
            )
    if line.segmentation:
        _check_classes(folder, number, line.segmentation)
    for item in line.objects:
        _check_box(folder, number, item, (width, height))
    for pair in line.pairs:
        for name in (pair.image, *pair.sources):
            _size(folder, number, name)


def _check_classes(folder: Path, number: int, name: str) -> None:
    with decoding(), Image.open(existing_path(folder, name)) as picture:
        mode, bands = picture.mode, len(picture.getbands())
    if bands != 1:
        raise fault(
            folder, number, f"the segmentation {name} is a {mode} picture, not one class number a pixel"
        )


def _check_box(folder: Path, number: int, item: ObjectLine, size: tuple[int, int]) -> None:
    if item.bbox is None and item.mask is None:
        raise fault(folder, number, f"object {item.label!r} has neither bbox nor mask; give at least one")
    if item.bbox is None:
        return
    x0, y0, x1, y1 = item.bbox
    if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]):
        raise fault(
            folder,
            number,
            f"the bbox {list(item.bbox)} of {item.label!r} is not inside the {size[0]}x{size[1]} picture; "
            "it should be [x0, y0, x1, y1], end excluded (COCO's [x, y, width, height] must be converted)",
        )


def _size(folder: Path, number: int, name: str) -> tuple[int, int]:
    """(width, height) of a picture of the folder, from its header."""
    path = existing_path(folder, name)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise fault(folder, number, f"{name} lies outside the folder; keep every file inside it")
    if not path.is_file():
        raise fault(folder, number, f"there is no file {name}")
    try:
        return stored_size(path)
    except BrokenPictureError as error:
        raise fault(folder, number, f"{name} is not a picture that can be read ({error})") from error

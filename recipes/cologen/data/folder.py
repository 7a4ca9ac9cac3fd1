"""Records from a folder of pictures with a `metadata.jsonl` beside them: `--data folder:PATH`.

One line of `metadata.jsonl` describes one picture; only `file_name` and `text` are required:

    {"file_name": "cat.jpg", "text": "a cat on a sofa",
     "objects": [{"label": "cat", "bbox": [40, 12, 200, 180], "mask": "cat_mask.png"}],
     "depth": "cat_depth.png", "segmentation": "cat_classes.png",
     "pairs": [{"task": "editing", "image": "black_cat.jpg", "prompt": "make the cat black"}]}

`bbox` is [x0, y0, x1, y1] in pixels, end excluded; a mask is true where it is not black; depth is brighter
where nearer; segmentation holds one class number a pixel, 0 (the background) to 255. Gray pictures may have
more than 8 bits. All lines are checked when the folder is opened, pixels are read when a record is asked for.
What a picture lacks is not made up: views that need it say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from recipes.cologen.data.decoding import as_rgb, is_deep, open_upright
from recipes.cologen.data.folder_metadata import (
    Box,
    Entry,
    ObjectLine,
    PairLine,
    check_files,
    fault,
    read_entries,
)
from recipes.cologen.data.record import Image, Mask, Pair, Record, RecordObject


class Frame(NamedTuple):
    """The part of a picture that is kept (left, top, right, bottom in its pixels) and the size it gets."""

    crop: tuple[float, float, float, float]
    width: int
    height: int


class PictureFolder:
    """A folder of pictures, read as records.

    The index counts on past the end, as in an endless world: `record(len(folder))` is the first again.

    Args:
        path: The folder that holds `metadata.jsonl`.
        size: (height, width) that every picture gets, its middle cut to that shape; None keeps its own.

    Raises:
        FolderDataError: The folder, a line of its metadata, or a file that a line names has a fault.
    """

    def __init__(self, path: Path, size: tuple[int, int] | None = None) -> None:
        """Read and check the metadata; see the class."""
        self.path = path
        self.size = size
        self._entries = tuple(read_entries(path))
        for entry in self._entries:
            check_files(path, entry)

    def __len__(self) -> int:
        """How many pictures the metadata lists."""
        return len(self._entries)

    def record(self, index: int) -> Record:
        """The record at an index, from 0 up.

        Raises:
            ValueError: The index is negative.
            FolderDataError: A file cannot be decoded.
        """
        if index < 0:
            raise ValueError(f"a folder's index starts at 0, got {index}")
        entry = self._entries[index % len(self._entries)]
        picture = self._open(entry, entry.line.file_name)
        frame = _frame(picture.size, self.size)
        objects = (self._object(entry, line, frame) for line in entry.line.objects)
        return Record(
            id=f"{entry.line.file_name}#{entry.number}",
            image=_pixels(picture, frame),
            caption=entry.line.text,
            objects=tuple(found for found in objects if found is not None),
            depth=self._depth(entry, frame),
            segmentation=self._segmentation(entry, frame),
            pairs=tuple(self._pair(entry, line, picture.size) for line in entry.line.pairs),
        )

    def records(self, start: int = 0) -> Iterator[Record]:
        """Stream records from an index on, round and round, without end."""
        index = start
        while True:
            yield self.record(index)
            index += 1

    def _open(self, entry: Entry, name: str) -> PilImage.Image:
        """A picture, decoded and turned the way its EXIF data says."""
        try:
            return open_upright(self.path / name)
        except (OSError, SyntaxError) as error:
            raise fault(self.path, entry.number, f"{name} is broken ({error}); save it again") from error

    def _object(self, entry: Entry, line: ObjectLine, frame: Frame) -> RecordObject | None:
        """The object as far as the frame shows it; None when the cut leaves nothing of it."""
        mask = None if line.mask is None else self._mask(entry, line.mask, frame)
        if mask is not None and not mask.any():
            return None
        box = _framed_box(line.bbox, frame) if line.bbox is not None else _box_around(mask)
        if box is None:
            return None
        return RecordObject(line.label, line.category or line.label, mask, box)

    def _mask(self, entry: Entry, name: str, frame: Frame) -> Mask:
        mask: Mask = np.asarray(self._open(entry, name).convert("L")) > 0
        if not mask.any():
            raise fault(self.path, entry.number, f"the mask {name} is black everywhere; it marks no pixel")
        resized = _resize(PilImage.fromarray(mask.astype(np.uint8)), frame, PilImage.Resampling.NEAREST)
        return np.asarray(resized) > 0

    def _depth(self, entry: Entry, frame: Frame) -> NDArray[np.float32] | None:
        """Depth in [0, 1], 1 nearest, stretched over the values that occur."""
        if entry.line.depth is None:
            return None
        picture = self._open(entry, entry.line.depth)
        values = np.asarray(picture if is_deep(picture) else picture.convert("L"), dtype=np.float32)
        low, high = float(values.min()), float(values.max())
        scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
        resized = _resize(PilImage.fromarray(scaled), frame, PilImage.Resampling.BILINEAR)
        return np.asarray(resized, dtype=np.float32).clip(0.0, 1.0)

    def _segmentation(self, entry: Entry, frame: Frame) -> NDArray[np.int64] | None:
        if entry.line.segmentation is None:
            return None
        classes = np.asarray(self._open(entry, entry.line.segmentation), dtype=np.int32)
        return np.asarray(
            _resize(PilImage.fromarray(classes), frame, PilImage.Resampling.NEAREST), dtype=np.int64
        )

    def _pair(self, entry: Entry, line: PairLine, first: tuple[int, int]) -> Pair:
        """The second picture, at the size of the first (width, height) or at the size asked for."""
        picture = self._open(entry, line.image)
        frame = _frame(picture.size, self.size or first[::-1])
        return Pair(line.task, _pixels(picture, frame), line.prompt, line.kind)


def _frame(picture: tuple[int, int], size: tuple[int, ...] | None) -> Frame:
    """The middle of a picture (width, height) with the shape of `size` (height, width)."""
    width, height = picture
    if size is None:
        return Frame((0.0, 0.0, float(width), float(height)), width, height)
    scale = min(width / size[1], height / size[0])
    left, top = (width - scale * size[1]) / 2, (height - scale * size[0]) / 2
    return Frame((left, top, width - left, height - top), size[1], size[0])


def _resize(picture: PilImage.Image, frame: Frame, resample: PilImage.Resampling) -> PilImage.Image:
    return picture.resize((frame.width, frame.height), resample, box=frame.crop)


def _pixels(picture: PilImage.Image, frame: Frame) -> Image:
    return np.asarray(_resize(as_rgb(picture), frame, PilImage.Resampling.LANCZOS)).copy()


def _framed_box(box: Box, frame: Frame) -> Box | None:
    """A box in the frame's pixels, clipped to it; None when it lies outside."""
    left, top, right, bottom = frame.crop
    across, down = frame.width / (right - left), frame.height / (bottom - top)
    x0, x1 = max(0.0, (box[0] - left) * across), min(float(frame.width), (box[2] - left) * across)
    y0, y1 = max(0.0, (box[1] - top) * down), min(float(frame.height), (box[3] - top) * down)
    if x0 >= x1 or y0 >= y1:
        return None
    return int(np.floor(x0)), int(np.floor(y0)), int(np.ceil(x1)), int(np.ceil(y1))


def _box_around(mask: Mask | None) -> Box | None:
    """The box around a mask's true pixels."""
    if mask is None or not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

"""Records from a folder of pictures with a `metadata.jsonl` beside them: `--data folder:PATH`.

One line of `metadata.jsonl` describes one picture; only `file_name` and `text` are required:

    {"file_name": "cat.jpg", "text": "a cat on a sofa",
     "objects": [{"label": "cat", "bbox": [40, 12, 200, 180], "mask": "cat_mask.png"}],
     "depth": "cat_depth.png", "segmentation": "cat_classes.png",
     "pairs": [{"task": "editing", "image": "black_cat.jpg", "prompt": "make the cat black"}]}

`bbox` is [x0, y0, x1, y1] in pixels, end excluded; a mask is true where it is brighter than half of its
brightest point, and nowhere transparent; what is transparent in a picture is white; depth is brighter where
nearer; segmentation holds one class number a pixel, 0 (the background) to 255. Gray pictures may have more
than 8 bits. All lines are checked when the folder is opened, pixels are read when a record is asked for.
What a picture lacks is not made up: views that need it say so.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image as PilImage

from recipes.cologen.data.buckets import Buckets, Size
from recipes.cologen.data.decoding import open_upright, stored_size
from recipes.cologen.data.folder_metadata import (
    METADATA,
    Entry,
    ObjectLine,
    PictureLine,
    fault,
    read_entries,
)
from recipes.cologen.data.framing import framed
from recipes.cologen.data.licences import UNSTATED
from recipes.cologen.data.needs import needs_of
from recipes.cologen.data.raw import RawObject, RawPair, RawRecord
from recipes.cologen.data.reading import mask_of
from recipes.cologen.data.record import Mask, Origin, Record
from recipes.cologen.data.size_index import UNKNOWN, Sizes
from recipes.cologen.data.sources.rows import existing_path
from recipes.cologen.errors import BrokenPictureError
from recipes.cologen.stages import COLOGEN_STAGES, PAIRED_TASKS


class PictureFolder:
    """A folder of pictures, read as records.

    The index counts on past the end, as in an endless world: `record(len(folder))` is the first again.

    Args:
        path: The folder that holds `metadata.jsonl`.
        size: (height, width) that every picture gets, its middle cut to that shape; None keeps its own. Of
            buckets each picture gets the nearest.
        licence: Of the pictures, as records and the data card tell it.
        max_sources: Source pictures that a pair may have.

    Raises:
        FolderDataError: The folder, a line of its metadata, or a file that a line names has a fault.
    """

    def __init__(
        self,
        path: Path,
        size: Size | Buckets | None = None,
        licence: str = UNSTATED,
        max_sources: int = 1,
    ) -> None:
        """Read and check the metadata; see the class."""
        self.path, self.size, self.licence, self.max_sources = path, size, licence, max_sources
        self._tasks: tuple[str, ...] = tuple(COLOGEN_STAGES)
        self._entries = read_entries(path)

    def __len__(self) -> int:
        """How many pictures the metadata lists."""
        return len(self._entries)

    def for_task(self, task: str) -> PictureFolder:
        """The same folder, read for one task alone: what that does not need is not decoded."""
        other = copy.copy(self)
        other._tasks = (task,)
        return other

    def record(self, index: int) -> Record:
        """The record at an index, from 0 up.

        Raises:
            ValueError: The index is negative.
            BrokenPictureError: A file cannot be decoded.
            FolderDataError: A mask marks no pixel.
        """
        if index < 0:
            raise ValueError(f"a folder's index starts at 0, got {index}")
        return framed(self._raw(self._entries[index % len(self._entries)]), self.size, self.max_sources)

    def records(self, start: int = 0) -> Iterator[Record]:
        """Stream records from an index on, round and round, without end."""
        index = start
        while True:
            yield self.record(index)
            index += 1

    def picture_sizes(self, task: str) -> Sizes:
        """Sizes of the pictures that a task makes of every record, from the files' headers."""
        return np.array([self._sizes(entry.line, task) for entry in self._entries], dtype=np.int32)

    def _sizes(self, line: PictureLine, task: str) -> tuple[int, int, int, int]:
        paired = [pair.image for pair in line.pairs if pair.task == task]
        if task in PAIRED_TASKS and not paired:
            return UNKNOWN
        try:
            source = self._stored_size(line.file_name)
            target = self._stored_size(paired[0]) if task in PAIRED_TASKS else source
        except BrokenPictureError:
            return UNKNOWN
        return (*target, *source)

    def _stored_size(self, name: str) -> Size:
        width, height = stored_size(existing_path(self.path, name))
        return height, width

    def _raw(self, entry: Entry) -> RawRecord:
        line, needs = entry.line, needs_of(self._tasks)
        picture = self._open(entry, line.file_name)
        return RawRecord(
            id=f"{line.file_name}#{entry.number}",
            picture=picture,
            caption=line.text,
            origin=Origin(str(self.path), None, self.licence, *picture.size),
            objects=tuple(self._object(entry, item) for item in line.objects if needs.objects),
            depth=None if line.depth is None or not needs.maps else self._open(entry, line.depth),
            segmentation=None
            if line.segmentation is None or not needs.maps
            else np.asarray(self._open(entry, line.segmentation), dtype=np.int32),
            pairs=tuple(
                RawPair(
                    task=pair.task,
                    picture=self._open(entry, pair.image),
                    prompt=pair.prompt,
                    kind=pair.kind,
                    further=tuple(self._open(entry, name) for name in pair.sources),
                )
                for pair in line.pairs
                if pair.task not in needs.other_pairs
            ),
        )

    def _open(self, entry: Entry, name: str) -> PilImage.Image:
        """A picture, decoded and turned the way its EXIF data says."""
        try:
            return open_upright(existing_path(self.path, name))
        except BrokenPictureError as error:
            where = f"{self.path / METADATA}, line {entry.number}"
            raise BrokenPictureError(f"{where}: {name} is broken ({error}); save it again.") from error

    def _object(self, entry: Entry, line: ObjectLine) -> RawObject:
        mask = None if line.mask is None else self._mask(entry, line.mask)
        return RawObject(line.label, line.category or line.label, mask, line.bbox)

    def _mask(self, entry: Entry, name: str) -> Mask:
        mask = mask_of(self._open(entry, name))
        if not mask.any():
            raise fault(self.path, entry.number, f"the mask {name} is black everywhere; it marks no pixel")
        return mask

"""Opens the places that a config's data settings name: the embedded world, or a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from recipes.cologen.config import DataSettings
from recipes.cologen.data.folder import PictureFolder
from recipes.cologen.data.record import Record
from recipes.cologen.data.world import World


class RecordSource(Protocol):
    """Where records come from."""

    def record(self, index: int) -> Record:
        """The record at an index, from 0 up."""


def training_records(data: DataSettings) -> tuple[RecordSource, int | None]:
    """The source that is trained on, and how many records it has (None: endless).

    Raises:
        FolderDataError: A folder, or a line of its metadata, has a fault.
    """
    if data.source == "world":
        return World(data.seed), None
    folder = _folder(data.source, data)
    return folder, len(folder)


def held_out_records(data: DataSettings) -> RecordSource | None:
    """The source that validation and report read; None where nothing is held out.

    Raises:
        FolderDataError: A folder, or a line of its metadata, has a fault.
    """
    place = data.held_out or ("world" if data.source == "world" else None)
    if place is None:
        return None
    return World(data.held_out_seed, held_out=True) if place == "world" else _folder(place, data)


def _folder(place: str, data: DataSettings) -> PictureFolder:
    return PictureFolder(Path(place.removeprefix("folder:")).expanduser(), data.size)

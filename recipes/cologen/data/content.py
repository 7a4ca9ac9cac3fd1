"""Short hashes of what a data set holds, wherever it lies: by these a run knows its data again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recipes.cologen.data.folder import PictureFolder
from recipes.cologen.data.folder_metadata import METADATA
from recipes.cologen.data.raw import RawRecord
from recipes.cologen.data.sets import DataSet
from recipes.cologen.data.sources.rows import ROW_FAULTS
from recipes.cologen.errors import CologenError

_LOOKED_AT = 32
"""Rows of a set whose records are made for it, spread evenly; of all others, texts and order alone count."""
_CHUNK = 2**20


def set_content(part: DataSet) -> str:
    """Hash of a set's rows: how many, which are kept, all texts, additions; and some rows and their records.

    Of those rows all columns count, pictures too where the row holds their bytes. A picture that is a file of
    its own counts by its name and size: no pixels are decoded.
    """
    digest = hashlib.blake2b(f"set {len(part.rows)} {len(part)} {part.texts}".encode(), digest_size=8)
    if part.settings.additions is not None:
        _add_file(digest, Path(part.settings.additions).expanduser())
    for index in np.linspace(0, len(part) - 1, min(_LOOKED_AT, len(part)), dtype=int).tolist():
        facts = [_row_facts(part, index), record_facts(part, index)]
        digest.update(json.dumps(facts, default=str).encode())
    return digest.hexdigest()


def folder_content(folder: PictureFolder) -> str:
    """Hash of a folder's metadata; its pictures are known by their names there."""
    digest = hashlib.blake2b(b"folder", digest_size=8)
    _add_file(digest, folder.path / METADATA)
    return digest.hexdigest()


def _row_facts(part: DataSet, index: int) -> Any:
    try:
        return _plain(part.row(index))
    except (CologenError, *ROW_FAULTS):
        return "unreadable"


def _plain(value: Any) -> Any:
    """A row's value as JSON: bytes by their hash, a whole path, which says where a file is, by its name."""
    if isinstance(value, bytes):
        return hashlib.blake2b(value, digest_size=8).hexdigest()
    if isinstance(value, str):
        return Path(value).name if value.startswith("/") else value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, int | float | None) else type(value).__name__


def record_facts(part: DataSet, index: int) -> list[Any]:
    """What a record shows, as plain values and hashes; `unreadable` where it cannot be read."""
    for sizes_only in (True, False):  # some layouts look into pixels
        try:
            return _facts(part.raw(index, sizes_only=sizes_only))
        except (CologenError, *ROW_FAULTS):
            continue
    return ["unreadable"]


def _facts(raw: RawRecord) -> list[Any]:
    objects = [(one.label, one.category, one.box) for one in raw.objects]
    pairs = [(pair.task, pair.picture.size, pair.prompt, pair.kind, len(pair.further)) for pair in raw.pairs]
    return [raw.id, raw.picture.size, raw.caption, objects, sorted(raw.maps), pairs]


def _add_file(digest: hashlib.blake2b, file: Path) -> None:
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)

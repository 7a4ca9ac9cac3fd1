"""Lists of the sizes of a stage's pictures, read from their headers once and kept in a folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prw.storage.atomic import atomic_file
from recipes.cologen.config.data import SetSettings
from recipes.cologen.data.layouts.layout import Layout, Reading
from recipes.cologen.data.raw import RawRecord
from recipes.cologen.data.sources.rows import ROW_FAULTS, Rows, matching_files
from recipes.cologen.stages import PAIRED_TASKS

Sizes = NDArray[np.int32]
"""Of each record target height and width, source height and width as stored, [records, 4]; 0: unknown."""
UNKNOWN = (0, 0, 0, 0)
_FORM = 1


def sizes_of(raw: RawRecord, task: str) -> tuple[int, int, int, int]:
    """Sizes of what a task makes target and source of."""
    source = (raw.picture.height, raw.picture.width)
    if task not in PAIRED_TASKS:
        return (*source, *source)
    target = next((pair.picture for pair in raw.pairs if pair.task == task), None)
    return UNKNOWN if target is None else (target.height, target.width, *source)


def row_sizes(layout: Layout, reading: Reading, task: str) -> tuple[int, int, int, int]:
    """Sizes of one row's pictures: as its columns tell, else from the pictures' headers.

    Of a row that cannot be read they are unknown; it is found broken when it is read.
    """
    if {"height", "width"} <= set(layout.columns) and task not in PAIRED_TASKS:
        size = int(reading.row["height"]), int(reading.row["width"])
        return (*size, *size)
    # Some layouts look into pixels; where black ones will not do, the picture is decoded after all.
    for attempt in (replace(reading, sizes_only=True), reading):
        try:
            return sizes_of(layout.record(attempt), task)
        except ROW_FAULTS:
            continue
    return UNKNOWN


def source_facts(settings: SetSettings, rows: Rows) -> list[Any]:
    """What identifies a set's rows: a table's own fingerprint, or its files with their times."""
    kind, _, path = settings.path.partition(":")
    if kind in ("tar", "json"):
        return file_facts(matching_files(path, settings.path))
    if kind == "folder":
        root = Path(path).expanduser()
        inside = [root / name for name in ("metadata.jsonl", "source", "target")]
        return file_facts(path for path in inside if path.exists())
    return [getattr(rows, "fingerprint", None)]


def kept_sizes(
    folder: str | None, facts: Any, count: int, read: Callable[[], Iterable[tuple[int, int, int, int]]]
) -> Sizes:
    """The sizes of `count` records: those kept under the very same facts, else read and kept.

    Args:
        folder: Where lists are kept; None: the user's cache folder.
        facts: All that decides which records there are and what is in them, as JSON can hold it.
        count: How many records there are.
        read: Reads the sizes, in the records' order.
    """
    name = hashlib.sha256(json.dumps([_FORM, facts], sort_keys=True, default=str).encode()).hexdigest()[:32]
    path = (_cache_folder() if folder is None else Path(folder).expanduser()) / f"{name}.npy"
    known = _load(path, count)
    if known is not None:
        return known
    sizes = np.array(list(read()), dtype=np.int32).reshape(count, 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as draft:
        np.save(draft, sizes)
    return sizes


def file_facts(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, length and time of change of files: another one of them is another list."""
    found = [(str(path), path.stat()) for path in paths]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def _load(path: Path, count: int) -> Sizes | None:
    try:
        sizes: Sizes = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return sizes if sizes.shape == (count, 4) and sizes.dtype == np.int32 else None


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "cologen" / "sizes"

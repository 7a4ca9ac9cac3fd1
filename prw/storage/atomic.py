"""Writes a folder so that a kill or a reader at any moment finds the old files or the new ones, no halves.

A new folder is written beside its place and renamed into it. In a folder that exists nothing but the written
files is touched: they are drafted inside it and renamed over the old ones, the configuration last. What a
kill leaves undone between two of those renames stays in the draft, where `prw.storage.folder` looks for it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft.utils import CONFIG_NAME

from prw.errors import StorageError

DRAFT = ".prw-draft-"
"""How the name of a draft inside a folder starts."""


FILE_DRAFT = ".new-"
"""How the name of a single file's draft starts."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the path of a draft that replaces the file `path` when the `with` block ends without an error.

    The draft lies beside the file and has its ending. After an error nothing of it is left.
    """
    draft = path.with_name(f"{FILE_DRAFT}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield draft
        sync(draft)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder whose files come to `path` when the `with` block ends without an error.

    Files that were in `path` and are not written anew are left alone.

    Raises:
        StorageError: if `path` is a file.
    """
    path = path.resolve()
    if path.exists() and not path.is_dir():
        raise StorageError(f"{path} is a file; a pool is saved as a folder. Give another path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    there = path.is_dir()
    prefix, home = (DRAFT, path) if there else (f".{path.name}.new-", path.parent)
    draft = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
    try:
        yield draft
        for file in draft.iterdir():
            sync(file)
        sync(draft)
        if not there:
            draft.chmod(0o777 & ~current_umask())
            draft.rename(path)
            sync(home)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if there:
        publish(draft, path)


def publish(draft: Path, path: Path) -> None:
    """Rename a draft's files over the old ones, each on disk before the next, the configuration last."""
    for file in sorted(draft.iterdir(), key=lambda file: (file.name == CONFIG_NAME, file.name)):
        file.replace(path / file.name)
        sync(path)
    draft.rmdir()


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def current_umask() -> int:
    """Read the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

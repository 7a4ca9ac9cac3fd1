"""Writes files and folders so that a kill or a reader at any moment finds the old ones or the new ones whole.

A draft is written beside its place, forced to disk and renamed into it:

    atomic_file      one file
    atomic_folder    some files of a folder, whose other files stay; renamed one by one, a given one last.
                     After a kill in between the rest is in the draft; `prw.storage.folder` finds it there
    replaced_folder  a folder as a whole, nested folders too. After a kill between its two renames no folder
                     has that name; `recover_folder` then puts the old one back
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def remove_drafts(folder: Path) -> None:
    """Remove drafts of single files that a killed process left; nobody may be writing there."""
    for draft in folder.glob(f"{FILE_DRAFT}????????-*"):  # as atomic_file names them
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file, all or nothing; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: Path, last: str) -> Iterator[Path]:
    """Yield an empty folder whose files come to `path` when the `with` block ends without an error.

    Files that were in `path` and are not written anew are left alone.

    Args:
        path: Where the files come to.
        last: Name of the file that is renamed last, where `path` exists already.
    """
    path = path.resolve()
    if path.exists() and not path.is_dir():
        raise StorageError(f"{path} is a file; a pool is saved as a folder. Give another path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    exists = path.is_dir()
    prefix, parent = (DRAFT, path) if exists else (f".{path.name}.new-", path.parent)
    draft = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield draft
        for file in draft.iterdir():
            sync(file)
        sync(draft)
        if not exists:
            draft.chmod(0o777 & ~current_umask())
            draft.rename(path)
            sync(parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if exists:  # each file is on disk before the next; an error leaves the rest in the draft
        for file in sorted(draft.iterdir(), key=lambda file: (file.name == last, file.name)):
            file.replace(path / file.name)
            sync(path)
        draft.rmdir()


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the `with` block ends without an error."""
    draft, old = path.with_name(f".{path.name}.new"), old_folder(path)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        for file in sorted(draft.rglob("*")):
            sync(file)
        sync(draft)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    recover_folder(path)
    if path.exists():
        path.rename(old)
    draft.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Finish or undo a replacement by `replaced_folder` that was cut off."""
    old = old_folder(path)
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def old_folder(path: Path) -> Path:
    """Give the place of a folder while another one takes its place."""
    return path.with_name(f".{path.name}.old")


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

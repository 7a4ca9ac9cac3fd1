"""Writes a folder so that a reader sees the old one or the new one, never half of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prw.errors import StorageError


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the `with` block ends without an error.

    Files that were in `path` and are not written anew are kept.

    Raises:
        StorageError: if `path` is a file.
    """
    if path.exists() and not path.is_dir():
        raise StorageError(f"{path} is a file; a pool is saved as a folder. Give another path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        yield draft
        draft.chmod(0o777 & ~current_umask())
        exchange(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def exchange(draft: Path, path: Path) -> None:
    """Put the finished draft where `path` was; if that fails, `path` is as before."""
    if not path.exists():
        draft.rename(path)
        return
    keep_others(path, draft)
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
    path.rename(old / path.name)
    try:
        draft.rename(path)
    except OSError:
        (old / path.name).rename(path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def keep_others(path: Path, draft: Path) -> None:
    """Copy what the old folder holds and the draft lacks."""
    for entry in path.iterdir():
        target = draft / entry.name
        if target.exists():
            continue
        if entry.is_dir():
            shutil.copytree(entry, target, symlinks=True)
        else:
            shutil.copy2(entry, target, follow_symlinks=False)


def current_umask() -> int:
    """Read the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

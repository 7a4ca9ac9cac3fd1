"""Keeps two commands from writing one run's folder: the first one locks it, the second one is refused.

The lock is the operating system's, on RUN/.lock, so it is gone with the process that held it, however that
ended. Processes that were launched together write as one: only rank 0 takes the lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from recipes.cologen.errors import RunFolderError

LOCK_FILE = ".lock"
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def hold_run_together(path: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold a run's folder for all ranks; where rank 0 cannot, all are refused, and none waits for it.

    Raises:
        RunFolderError: As `hold_run`.
    """
    with ExitStack() as held:
        problem = None
        if accelerator.is_main_process:
            try:
                held.enter_context(hold_run(path))
            except RunFolderError as error:
                problem = str(error)
        (problem,) = broadcast_object_list([problem])
        if problem is not None:
            raise RunFolderError(problem)
        yield


@contextmanager
def hold_run(path: Path) -> Iterator[None]:
    """Hold a run's folder for this process; what was made for that and not used is removed again.

    Raises:
        RunFolderError: Another process holds it (its id is named), or the folder cannot be written.
    """
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        handle = _lock(path / LOCK_FILE)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield
    finally:
        (path / LOCK_FILE).unlink(missing_ok=True)
        os.close(handle)
        _remove_empty(missing)


def cannot_write(path: Path, error: OSError) -> RunFolderError:
    """The error for an --output that is no place to write to."""
    return RunFolderError(
        f"{path} cannot be the folder of a run: {error.strerror or error} ({error.filename or path}). Give a "
        "folder that you may write to as --output."
    )


def _lock(file: Path) -> int:
    """Open and lock the file; anew if the holder before removed it in between."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # Not flock: that would be held on by forked loader workers that outlive a killed run.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = os.read(handle, 200).decode("utf-8", "replace") or "unknown"
                os.close(handle)
                raise RunFolderError(
                    f"another command is working in {file.parent} (process {holder}). Wait for it, stop it, "
                    "or give another --output."
                ) from error
            if error.errno not in _NO_LOCKS_HERE:
                os.close(handle)
                raise
        if _is_same_file(handle, file):
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()} on {socket.gethostname()}".encode())
            return handle
        os.close(handle)


def _is_same_file(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, up to the first that holds something."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return

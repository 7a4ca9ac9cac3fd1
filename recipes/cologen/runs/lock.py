"""Keeps two commands from writing to one run's folder: the first one locks it, the second one is refused.

The lock is the operating system's, on RUN/.lock, so it goes with the process that held it, however that
ended; forked loader workers do not inherit it. Processes that were launched together write as one: only
rank 0 takes the lock. Where the disk knows no locks, there is none.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from recipes.cologen.errors import RunFolderError

LOCK_FILE = ".lock"
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_RETRY_SECONDS = 0.2
"""Long enough to take a lock anew whose file its holder removed just now."""


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
    """Hold a run's folder for this process; folders made for the lock and left empty are removed again.

    Raises:
        RunFolderError: Another process holds it (its id is named), or the folder cannot be written.
    """
    file = path / LOCK_FILE
    lock = FileLock(file, timeout=_RETRY_SECONDS, fallback_to_soft=False)
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        _acquire(lock, file)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            file.unlink()
        lock.release()
        _remove_empty(missing)


def cannot_write(path: Path, error: OSError) -> RunFolderError:
    """The error for an --output that is no place to write to."""
    return RunFolderError(
        f"{path} cannot be the folder of a run: {error.strerror or error} ({error.filename or path}). Give a "
        "folder that you may write to as --output."
    )


def _acquire(lock: FileLock, file: Path) -> None:
    """Take the lock and write this process's id into its file."""
    try:
        lock.acquire()
    except Timeout as error:
        raise RunFolderError(
            f"another command is working in {file.parent} (process {_holder(file)}). Wait for it, stop it, "
            "or give another --output."
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        return
    with suppress(OSError):  # on Windows the lock keeps others from the file's content, and this process too
        file.write_text(f"{os.getpid()} on {socket.gethostname()}", encoding="utf-8")


def _holder(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")[:200] or "unknown"
    except OSError:
        return "unknown"


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, up to the first that holds something."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return

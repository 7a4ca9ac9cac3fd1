"""What the benchmark asks of a device, and the answer of a CPU, on which everything here can be rehearsed."""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from benchmarks.memory import peak_bytes
from benchmarks.origin import cpu_name

Run = Callable[[], Any]
Mark = Any
"""A point in the device's time; only the device that made it can read it."""
REHEARSAL = "cpu rehearsal"


class DeviceLostError(Exception):
    """The device answers no more in this process, as after a kernel that wrote where it must not."""


@contextmanager
def without_collecting() -> Iterator[None]:
    """Collect no garbage inside: it takes time, and may free a recording within another one."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


class Device(ABC):
    """A place where things run and are timed.

    Attributes:
        torch_device: For torch.
        name: Of the hardware; `REHEARSAL` where nothing that is measured means anything.
        l2_bytes: Size of the last cache before memory.
        dtype: In which is timed.
    """

    torch_device: torch.device
    name: str
    l2_bytes: int
    dtype = torch.bfloat16

    @abstractmethod
    def facts(self) -> dict[str, int | str]:
        """Say what the hardware is, as far as it bears on the numbers."""

    @abstractmethod
    def mark(self) -> Mark:
        """Mark now, in the order of the device's work."""

    @abstractmethod
    def seconds(self, start: Mark, stop: Mark) -> float:
        """Give the time between two marks that the device has passed."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has done everything."""

    @abstractmethod
    def flush(self) -> None:
        """Push everything out of the caches, without leaving anything there that has to be written back."""

    @abstractmethod
    def captured(self, run: Run) -> Run:
        """Record a run's launches once, and give what replays them on the same memory.

        The run has been run before, so that nothing is compiled or set up within the recording.

        Raises:
            RuntimeError: if it does what cannot be recorded.
        """

    @abstractmethod
    def unsynchronized(self) -> AbstractContextManager[None]:
        """Make every wait of the host for the device an error inside."""

    @abstractmethod
    def peak_bytes(self, run: Run) -> int:
        """Run, and give the most that was allocated at once above the level at the start."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Give the memory that is left."""

    @abstractmethod
    def release(self) -> None:
        """Give memory back that nobody holds any more."""

    def still_there(self, name: str) -> None:
        """Give memory back, and see whether the device goes on after what was done last.

        Args:
            name: What that was.

        Raises:
            DeviceLostError: if it does not.
        """
        try:
            self.release()
            self.synchronize()
        except RuntimeError as error:
            raise DeviceLostError(name) from error


class Rehearsal(Device):
    """The CPU in the place of a GPU: the same calls, no meaning."""

    def __init__(self) -> None:
        """Take the CPU; its flush buffer is small, since nothing depends on it."""
        self.torch_device = torch.device("cpu")
        self.name = REHEARSAL
        self.l2_bytes = 1 << 16
        self._buffer = torch.ones(self.l2_bytes // 4)

    def facts(self) -> dict[str, int | str]:
        return {"cpu": cpu_name()}

    def mark(self) -> Mark:
        return time.perf_counter()

    def seconds(self, start: Mark, stop: Mark) -> float:
        return max(float(stop - start), 1e-9)

    def synchronize(self) -> None:
        pass

    def flush(self) -> None:
        self._buffer.sum()

    def captured(self, run: Run) -> Run:
        return run

    def unsynchronized(self) -> AbstractContextManager[None]:
        return nullcontext()

    def peak_bytes(self, run: Run) -> int:
        return peak_bytes(run)

    def free_bytes(self) -> int:
        return 0

    def release(self) -> None:
        """Leave it to Python: collecting a hundred times would take most of a rehearsal."""

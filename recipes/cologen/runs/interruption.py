"""Turns Ctrl-C, SIGTERM and SIGUSR1 into a wish to stop, granted after the step that training is in.

SIGUSR1 is what SLURM is usually told to send ahead of a job's end (`--signal=USR1@120`).
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

import torch
from accelerate import Accelerator

STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
"""Windows has no SIGUSR1."""
STOPPED = 130
"""Exit status of a command that was asked to stop, as shells have it for Ctrl-C."""


class StopSignals:
    """Notes `STOP_SIGNALS` while it is entered; a second Ctrl-C interrupts at once.

    Outside the main thread, where Python delivers no signals, it never asks to stop.
    """

    def __init__(self) -> None:
        """Begin with no wish."""
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any rank was asked to stop; all ranks must call this at the same step."""
        if accelerator.num_processes == 1:
            return self.requested
        wish = torch.tensor([int(self.requested)], device=accelerator.device)
        return bool(accelerator.reduce(wish, "sum").item())

"""Writes what a run measures: a JSON object a line in metrics.jsonl, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter


class MetricsLog:
    """The metrics of one run; on ranks other than 0 it writes nothing.

    Args:
        run: The run's folder.
        enabled: Whether this process writes.
        length: Bytes of metrics.jsonl that the checkpoint knows of; later rows are cut off and written anew.
        step: Optimiser steps done so far, over all stages; TensorBoard forgets what came after.
    """

    def __init__(self, run: Path, enabled: bool, length: int, step: int) -> None:
        """Open both files; see the class."""
        self.path = run / "metrics.jsonl"
        self._enabled = enabled
        self._board: SummaryWriter | None = None
        if not enabled:
            return
        self.path.touch()
        with self.path.open("r+b") as file:
            file.truncate(min(length, self.path.stat().st_size))
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def train(self, step_overall: int, row: Mapping[str, Any]) -> None:
        """Write a row of training; `step_overall` counts over all stages."""
        self._write({"kind": "train", **row})
        for name in ("loss", "task_loss", "veteran_loss", "share", "gate", "lr"):
            self._scalar(f"train/{name}", row[name], step_overall)

    def validation(self, step_overall: int, row: Mapping[str, Any]) -> None:
        """Write a row of validation."""
        self._write({"kind": "validation", **row})
        for task, score in row["scores"].items():
            self._scalar(f"validation/{task}", score, step_overall)

    def length(self) -> int:
        """Bytes written so far, all of them on disk."""
        if not self._enabled:
            return 0
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def __enter__(self) -> Self:
        """Nothing more to open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write out what TensorBoard still holds."""
        if self._board is not None:
            self._board.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def _scalar(self, name: str, value: float, step: int) -> None:
        if self._board is not None:
            self._board.add_scalar(name, value, step)

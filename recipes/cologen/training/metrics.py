"""Writes what a run measures: a JSON object a line in metrics.jsonl, and the same numbers for trackers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from recipes.cologen.data.record import Image
from recipes.cologen.runs.files import METRICS
from recipes.cologen.training.trackers import Trackers


class MetricsLog:
    """The metrics of one run; on ranks other than 0 it writes nothing.

    Args:
        run: The run's folder.
        enabled: Whether this process writes.
        length: Bytes of metrics.jsonl that the checkpoint knows of; later rows are cut off and written anew.
        step: Optimiser steps done so far, over all stages; TensorBoard forgets what came after.
        trackers: Which of accelerate's trackers get the numbers too.
        project: What trackers that know projects call this one.

    Raises:
        TrackerError: A tracker is unknown or not installed.
    """

    def __init__(
        self,
        run: Path,
        enabled: bool,
        length: int,
        step: int,
        trackers: Sequence[str] = ("tensorboard",),
        project: str = "cologen",
    ) -> None:
        """Open the file and start the trackers; see the class."""
        self.path = run / METRICS
        self._enabled = enabled
        self._trackers: Trackers | None = None
        if not enabled:
            return
        self.path.touch()
        with self.path.open("r+b") as file:
            file.truncate(min(length, self.path.stat().st_size))
        self._trackers = Trackers(trackers, run, project, step)

    def train(self, step_overall: int, row: Mapping[str, Any]) -> None:
        """Write a row of training; `step_overall` counts over all stages."""
        self.write({"kind": "train", **row})
        names = ("loss", "task_loss", "veteran_loss", "share", "gate", "lr", "skipped_steps")
        self._log({f"train/{name}": row[name] for name in names if name in row}, step_overall)

    def skipped(self, step_overall: int, row: Mapping[str, Any]) -> None:
        """Write down a step that was skipped."""
        self.write({"kind": "skipped", **row})
        self._log({"train/skipped_steps": row["skipped_steps"]}, step_overall)

    def validation(self, step_overall: int, row: Mapping[str, Any]) -> None:
        """Write a row of validation."""
        self.write({"kind": "validation", **row})
        numbers = {f"validation/{task}": score for task, score in row["scores"].items()}
        for name in ("loss", "share", "entropy"):
            numbers |= {f"validation_{name}/{task}": value for task, value in row.get(name, {}).items()}
        self._log(numbers, step_overall)

    def picture(self, step_overall: int, name: str, picture: Image) -> None:
        """Show a picture in the trackers that take any."""
        if self._trackers is not None:
            self._trackers.picture(name, picture, step_overall)

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
        """Write out what trackers still hold."""
        if self._trackers is not None:
            self._trackers.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl; only rank 0 does."""
        if self._enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def _log(self, values: Mapping[str, float], step: int) -> None:
        if self._trackers is not None:
            self._trackers.log(values, step)

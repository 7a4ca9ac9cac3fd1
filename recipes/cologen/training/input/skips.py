"""Rows that training had to skip: counted, listed in `skipped.jsonl`, and an end when there are too many."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from recipes.cologen.errors import TooManyBrokenError
from recipes.cologen.runs.files import skipped_file
from recipes.cologen.training.input.batches import Batch

FIRST_JUDGED = 200
"""Draws after which the fraction of skipped ones is judged: one broken row among the first few is no rate."""


class SkipTally:
    """The skipped rows of this process, since it started.

    Args:
        run: The run's folder.
        most: Largest fraction of examples that may be skipped.
        rank: Of this process; every one writes a file of its own, and judges its own examples.
    """

    def __init__(self, run: Path, most: float, rank: int) -> None:
        """Read what is listed already; see the class."""
        self._file = skipped_file(run, rank)
        self._most, self._examples, self._skipped = most, 0, 0
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.is_file() else []
        self._listed = set(lines)

    @property
    def skipped(self) -> int:
        """How many examples met a row that cannot be read."""
        return self._skipped

    def add(self, stage: str, batch: Batch) -> None:
        """Count a batch, and list rows that were not met before.

        Raises:
            TooManyBrokenError: The fraction is above the largest.
        """
        self._examples += len(batch.seeds)
        self._skipped += len(batch.skipped)
        self._list([json.dumps({"stage": stage, "problem": problem}) for problem in batch.skipped])
        if self._examples >= FIRST_JUDGED and self._skipped > self._most * self._examples:
            raise TooManyBrokenError(
                f"{self._skipped} of {self._examples} rows could not be read, more than data.max_broken="
                f"{self._most:g} allows; {self._file} lists them. Mend the data, or raise data.max_broken. "
                "The run is kept as of its last checkpoint."
            )

    def add_held_out(self, task: str, problems: Sequence[str]) -> None:
        """List what was wrong with held-out rows of a task; they end nothing."""
        rows = [{"stage": task, "held_out": True, "problem": problem} for problem in problems]
        self._list([json.dumps(row) for row in rows])

    def _list(self, lines: Sequence[str]) -> None:
        """Write down those lines that are not in the list yet."""
        new = [line for line in dict.fromkeys(lines) if line not in self._listed]
        if new:
            self._listed.update(new)
            with self._file.open("a", encoding="utf-8") as listing:
                listing.writelines(line + "\n" for line in new)

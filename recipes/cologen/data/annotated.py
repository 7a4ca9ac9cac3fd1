"""Records that know what may make the control maps that they lack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from recipes.cologen.data.record import Image, Record


class _FiniteRecords(Protocol):
    def __len__(self) -> int: ...

    def record(self, index: int) -> Record: ...


class AnnotatedRecords:
    """The records of a finite source, each with the run's annotators."""

    def __init__(
        self, records: _FiniteRecords, annotators: Mapping[str, Callable[[Image], Image] | None]
    ) -> None:
        """Take annotators by map; None stands for one that the training device runs."""
        self._records, self._annotators = records, annotators

    def __len__(self) -> int:
        """How many records there are."""
        return len(self._records)

    def record(self, index: int) -> Record:
        """The record at an index, from 0 up; past the end it is the first again.

        Raises:
            BrokenPictureError: It cannot be read.
        """
        return replace(self._records.record(index), annotators=self._annotators)

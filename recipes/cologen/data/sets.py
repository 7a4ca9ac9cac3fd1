"""A data set of the config, opened: its rows by index as records, those left out counted with the reason."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from recipes.cologen.config.data import DataSettings, SetSettings
from recipes.cologen.data.buckets import buckets_of
from recipes.cologen.data.framing import framed
from recipes.cologen.data.layouts import Reading
from recipes.cologen.data.raw import RawRecord
from recipes.cologen.data.record import Record
from recipes.cologen.data.set_opening import (
    additions_of,
    layout_of,
    open_rows,
    options_of,
    root_of,
    set_licence,
    tasks_of,
)
from recipes.cologen.data.size_index import UNKNOWN, Sizes, kept_sizes, row_sizes, source_facts
from recipes.cologen.data.sources.rows import ROW_FAULTS, Row
from recipes.cologen.data.text import has_several, is_text
from recipes.cologen.errors import BrokenPictureError, DataSetError

_SHOWN = 3


class DataSet:
    """One set of `data.sets`.

    All rows are looked through once when it is opened, without their pictures: for captions that are
    missing, and for what the layout leaves out. An index counts the kept rows, each as often as the layout
    has variants.

    Args:
        name: What the config calls it.
        settings: Of the set.
        data: Size, and whether captions may be empty.

    Raises:
        DataSetError: The layout, its options, files, columns or captions are not as they should be.
    """

    def __init__(self, name: str, settings: SetSettings, data: DataSettings) -> None:
        """Open the files and look through the rows; see the class."""
        self.name, self.settings = name, settings
        self.origin = f"data.sets.{name}"
        self.layout = layout_of(settings, self.origin)
        self.tasks = tasks_of(settings, self.layout, self.origin)
        self.licence = set_licence(settings, name)
        self.options = options_of(settings, self.layout, self.origin)
        self.rows = open_rows(settings, self.layout, self.origin)
        self.left_out: Counter[str] = Counter()
        """How many rows were left out, by reason."""
        self.without_caption = 0
        """How many of the kept rows have no caption or prompt; above 0 only where that is allowed."""
        self.several_captions = 0
        """How many of the kept rows have a list of captions or prompts where one is read: the first."""
        self._size, self._root = buckets_of(data.buckets) or data.size, root_of(settings)
        self._max_sources = data.max_sources
        self._index_folder, self._sizes = data.buckets.index, dict[str, Sizes]()
        self._additions = additions_of(settings, self.layout, self.origin)
        self._check_columns()
        self.texts = ""
        """Hash of which rows are kept and of their texts."""
        self._kept = self._look_through(data.empty_captions == "allow")

    def __len__(self) -> int:
        """How many records there are."""
        return len(self._kept) * self.layout.variants

    def raw(self, index: int, *, sizes_only: bool) -> RawRecord:
        """The record at an index as it is stored; with black pictures if only their sizes are wanted.

        Raises:
            Exception: Whatever a row that is not as the layout expects leads to.
        """
        place, variant = divmod(index, self.layout.variants)
        reading = self._reading(self._kept[place], variant)
        return self.layout.record(replace(reading, sizes_only=sizes_only))

    def row(self, index: int) -> Row:
        """The row that the record at an index is made of.

        Raises:
            BrokenPictureError: It cannot be read.
        """
        return self.rows.row(self._kept[index // self.layout.variants])

    def record(self, index: int, task: str | None = None) -> Record:
        """The record at an index, from 0 up; past the end it is the first again.

        Args:
            index: Of the record.
            task: What it is for, if only for one: what that does not need may be left out.

        Raises:
            BrokenPictureError: The row cannot be read.
            DataSetError: It has more source pictures than `data.max_sources`.
            ValueError: The index is negative.
        """
        if index < 0:
            raise ValueError(f"a data set's index starts at 0, got {index}")
        place, variant = divmod(index % len(self), self.layout.variants)
        row = self.rows.name(self._kept[place])
        name = f"{self.name}/{row}"
        try:
            reading = self._reading(self._kept[place], variant)
            if task is not None:
                reading = replace(reading, tasks=(task,))
            return framed(self.layout.record(reading), self._size, self._max_sources)
        except BrokenPictureError as error:
            problem = str(error)
            if not problem.startswith(name):
                problem = f"{name}: {problem.removeprefix(f'{row}: ')}"
            raise BrokenPictureError(problem) from error
        except DataSetError:
            raise
        # A row of a large public set may hold anything; what it is is said, and the row is skipped.
        except ROW_FAULTS as error:
            raise BrokenPictureError(
                f"{name}: not as the layout expects ({type(error).__name__}: {error})"
            ) from error

    def picture_sizes(self, task: str) -> Sizes:
        """Sizes of the pictures that a task makes of every record; read once, then kept in a file."""
        if task not in self._sizes:
            kept = hashlib.sha256(self._kept.tobytes()).hexdigest()
            settings = self.settings.model_dump(mode="json")
            facts = [task, self.tasks, settings, kept, source_facts(self.settings, self.rows)]
            self._sizes[task] = kept_sizes(
                self._index_folder, facts, len(self), lambda: self._read_sizes(task)
            )
        return self._sizes[task]

    def _read_sizes(self, task: str) -> Iterator[tuple[int, int, int, int]]:
        for index in self._kept:
            for variant in range(self.layout.variants):
                try:
                    reading = self._reading(index, variant)
                except ROW_FAULTS:
                    yield UNKNOWN
                else:
                    yield row_sizes(self.layout, reading, task)

    def _reading(self, index: int, variant: int) -> Reading:
        row = self.rows.row(index)
        return Reading(
            id=f"{self.name}/{self.rows.name(index)}",
            row=row,
            variant=variant,
            tasks=self.tasks,
            options=self.options,
            dataset=self.settings.path if self.layout.home == "your own" else self.layout.home,
            revision=self.settings.revision,
            licence=self.licence,
            root=self._root,
            addition=self._addition(row),
        )

    def _addition(self, row: Row) -> Mapping[str, Any]:
        if self._additions is None or self.layout.key is None:
            return {}
        return self._additions.get(str(row.get(self.layout.key)))

    def _check_columns(self) -> None:
        columns = self.rows.columns
        missing = [name for name in self.layout.columns if name not in columns] if columns else []
        if missing:
            raise DataSetError(
                f"{self.origin}: {self.settings.path} has no column {', '.join(missing)}, which the layout "
                f"{self.layout.name!r} reads; it has {', '.join(columns)}. Choose another layout"
            )

    def _look_through(self, may_be_empty: bool) -> array[int]:
        """Indices of the rows that are kept.

        Raises:
            DataSetError: Captions are missing, or nothing is left.
        """
        kept, empty = array("q"), list[str]()
        told = hashlib.blake2b(digest_size=8)
        light = [name for name in self.layout.light if not self.rows.columns or name in self.rows.columns]
        for index, row in enumerate(self.rows.scan(light)):
            reason, lacks_text, texts = self._looked_at(row)
            if reason is not None:
                self.left_out[reason] += 1
                continue
            if lacks_text:
                self.without_caption += 1
                if len(empty) < _SHOWN:
                    empty.append(self.rows.name(index))
            self.several_captions += any(map(has_several, texts))
            kept.append(index)
            told.update(f"{index}{list(texts)}".encode("utf-8", "surrogatepass"))
        self.texts = told.hexdigest()
        if empty and not may_be_empty:
            raise DataSetError(
                f"{self.origin}: {self.without_caption} of {len(self.rows)} rows have no caption or prompt "
                f"(for example {', '.join(empty)}). Write them, or allow it: --set data.empty_captions=allow"
            )
        if not kept:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
            raise DataSetError(f"{self.origin}: no row is left of {len(self.rows)} ({reasons or 'no rows'})")
        return kept

    def _looked_at(self, row: Row | BrokenPictureError) -> tuple[str | None, bool, Sequence[Any]]:
        """Why a row is left out, if it is; whether it lacks a caption; its texts."""
        # One that cannot be read is kept, so that it is counted among the broken ones when it is asked for.
        if isinstance(row, BrokenPictureError):
            return None, False, ()
        try:
            reason, texts = self._reason(row), self._texts(row)
            return reason, not all(map(is_text, texts)), texts
        except ROW_FAULTS:
            return None, False, ()

    def _reason(self, row: Row) -> str | None:
        if self.layout.needs == "objects":
            added = self._additions
            if added is None or not added.has_objects(str(row.get(str(self.layout.key)))):
                return "no objects in additions"
        return self.layout.reject(row, self.options)

    def _texts(self, row: Row) -> Sequence[Any]:
        if self.layout.needs == "text":
            return [self._addition(row).get("text")]
        return self.layout.texts(row)


class Mixture:
    """Several data sets one after the other, each as often as its `repeat` says; a sampler shuffles them."""

    def __init__(self, sets: Sequence[DataSet], task: str | None = None) -> None:
        """Take sets that serve one stage, and its task, so that they read no more than it needs."""
        self._task = task
        self._parts = [part for part in sets for _ in range(part.settings.repeat)]
        self._ends = list(accumulate(len(part) for part in self._parts))

    def __len__(self) -> int:
        """How many records an epoch has."""
        return self._ends[-1]

    def record(self, index: int) -> Record:
        """The record at an index, from 0 up; past the end it is the first again."""
        place = index % len(self)
        part = bisect_right(self._ends, place)
        return self._parts[part].record(place - (self._ends[part] - len(self._parts[part])), self._task)

    def picture_sizes(self, task: str) -> Sizes:
        """Sizes of the pictures that a task makes of every record."""
        return np.concatenate([part.picture_sizes(task) for part in self._parts])

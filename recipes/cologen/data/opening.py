"""Opens what a config's data settings name: the embedded world, a folder of pictures, data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from recipes.cologen.config.annotators import AnnotatorSettings
from recipes.cologen.config.data import BucketSettings, DataSettings, SetSettings
from recipes.cologen.data.annotators.annotate import worker_annotators
from recipes.cologen.data.buckets import BucketedRecords, bucketed, buckets_of
from recipes.cologen.data.folder import PictureFolder
from recipes.cologen.data.layouts import LAYOUTS
from recipes.cologen.data.licences import is_allowed
from recipes.cologen.data.record import Image, Record
from recipes.cologen.data.set_opening import set_licence
from recipes.cologen.data.sets import DataSet, Mixture
from recipes.cologen.data.size_index import Sizes
from recipes.cologen.data.world import World
from recipes.cologen.errors import DataSetError


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


class RecordSource(Protocol):
    """Where records come from."""

    def record(self, index: int) -> Record:
        """The record at an index, from 0 up."""


class StageSource(NamedTuple):
    """What one stage reads."""

    records: RecordSource
    num_records: int | None
    """None: endless."""
    sizes: Callable[[str], Sizes] | None = None
    """Sizes of the pictures that a task makes of every record; None where they are all alike."""

    def bucketed(self, task: str, settings: BucketSettings) -> BucketedRecords | None:
        """The records of a stage by compound bucket; None without buckets."""
        buckets = buckets_of(settings)
        if buckets is None or self.sizes is None:
            return None
        return bucketed(self.sizes(task), buckets)


@dataclass(frozen=True)
class DataSource:
    """The opened data of a run: one place that serves every stage, or data sets of which each serves some."""

    place: StageSource | None
    sets: tuple[DataSet, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    """Data sets that `data.licence` leaves out, with their licences."""
    annotators: Mapping[str, AnnotatorSettings] = field(default_factory=dict)
    """What makes maps that the sets do not store."""
    folder: PictureFolder | None = None
    """The folder that the place is, if it is one."""

    def stage(self, task: str) -> StageSource:
        """What a stage reads.

        Raises:
            DataSetError: No data set serves it.
        """
        if self.place is not None:
            records = self.place.records
            # A folder's pictures may have much that one stage does not read.
            one = records.for_task(task) if isinstance(records, PictureFolder) else records
            return self.place._replace(records=one)
        serving = [part for part in self.sets if task in part.tasks]
        if not serving:
            raise DataSetError(_nothing_for(task, self.sets, self.refused))
        mixture = Mixture(serving, task)
        return StageSource(_annotated(mixture, self.annotators), len(mixture), mixture.picture_sizes)


def training_records(data: DataSettings) -> DataSource:
    """Open what is trained on.

    Raises:
        FolderDataError, DataSetError: A folder or a data set has a fault.
    """
    if data.source == "world":
        return DataSource(StageSource(World(data.seed), None))
    if data.source == "sets":
        return _opened_sets(data.sets, data)
    return _folder(data.source, data)


def held_out_records(data: DataSettings) -> DataSource | None:
    """Open what validation and report read; None where nothing is held out.

    Raises:
        FolderDataError, DataSetError: A folder or a data set has a fault.
    """
    place = data.held_out_place
    if place is None:
        return None
    if place == "world":
        return DataSource(StageSource(World(data.held_out_seed, held_out=True), None))
    return _opened_sets(data.held_out_sets, data) if place == "sets" else _folder(place, data)


def _folder(place: str, data: DataSettings) -> DataSource:
    size = buckets_of(data.buckets) or data.size
    path = Path(place.removeprefix("folder:")).expanduser()
    folder = PictureFolder(path, size, max_sources=data.max_sources)
    records = _annotated(folder, data.annotators)
    return DataSource(StageSource(records, len(folder), folder.picture_sizes), folder=folder)


def _annotated(records: Mixture | PictureFolder, annotators: Mapping[str, AnnotatorSettings]) -> RecordSource:
    """Records that know what makes the maps that they lack, where there is something."""
    return AnnotatedRecords(records, worker_annotators(annotators)) if annotators else records


def _opened_sets(sets: Mapping[str, SetSettings], data: DataSettings) -> DataSource:
    """Open those sets whose licence is allowed; what is left out is neither opened nor read."""
    licences = {name: set_licence(settings, name) for name, settings in sets.items()}
    refused = {name: licence for name, licence in licences.items() if not is_allowed(licence, data.licence)}
    opened = (DataSet(name, settings, data) for name, settings in sets.items() if name not in refused)
    return DataSource(None, tuple(opened), refused, data.annotators)


def _nothing_for(task: str, sets: tuple[DataSet, ...], refused: Mapping[str, str]) -> str:
    able = ", ".join(name for name, layout in LAYOUTS.items() if task in layout.tasks)
    left_out = ", ".join(f"{name} ({licence})" for name, licence in refused.items())
    return (
        f"no data set serves stage {task!r}: data.sets has {', '.join(part.name for part in sets) or 'none'}"
        + (f", and data.licence leaves out {left_out}" if left_out else "")
        + f". Layouts that can: {able}; or train other stages (--stage)"
    )

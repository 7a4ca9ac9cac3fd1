"""The ways in as cases to time: each source, number of workers, and cache, from a draw to tokens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.input.pictures import SOURCES, base, settings, write
from benchmarks.measuring import Case
from recipes.cologen.caching.encoder import Encoder, open_encoder
from recipes.cologen.config.data import CacheSettings
from recipes.cologen.config.training import DropoutSettings
from recipes.cologen.data.opening import training_records
from recipes.cologen.data.sampler import BatchSampler
from recipes.cologen.training.input.batches import Batch, batches
from recipes.cologen.training.input.filling import FixedExamples, fill

NO_DROPOUT = DropoutSettings(text=0, source=0)
PREFETCHED = 2
"""Batches that a worker of torch's loader makes ahead."""


class Extent(NamedTuple):
    """How much is read."""

    pictures: int
    batch: int
    batches: int
    """Read in one run."""
    workers: tuple[int, ...]


EXTENTS = {
    "smoke": Extent(pictures=4, batch=2, batches=1, workers=(0,)),
    "default": Extent(pictures=32, batch=8, batches=4, workers=(0, 1, 2)),
    "full": Extent(pictures=64, batch=8, batches=4, workers=(0, 1, 2)),
}


class Way(NamedTuple):
    """One way in."""

    source: str
    workers: int
    cache: str


def cases(folder: Path, extent: Extent) -> Iterator[tuple[Way, Case]]:
    """All ways in; streams stay open, and what workers made ahead is thrown away before each run."""
    model, device = base(), torch.device("cpu")
    for source in SOURCES:
        records = training_records(settings(write(folder / source, source, extent.pictures))).stage("editing")
        kept = open_encoder(model, device, CacheSettings(folder=str(folder / "cache" / source)))
        fill(kept, FixedExamples(records.records, extent.pictures, "editing", NO_DROPOUT))
        for workers, cache in product(extent.workers, ("none", "full")):
            sampler = BatchSampler(records.num_records, batch_size=extent.batch, seed=0)
            keyed = cache == "full"
            stream = batches(records.records, "editing", sampler, NO_DROPOUT, workers, keyed)
            encoder = kept if keyed else Encoder(model, device)
            yield Way(source, workers, cache), _case(stream, encoder, extent.batches, PREFETCHED * workers)


def _case(stream: Iterator[Batch], encoder: Encoder, count: int, ahead: int) -> Case:
    def run() -> None:
        for _ in range(count):
            batch = next(stream)
            encoder.images(batch.target, batch.keys.target)
            encoder.images(batch.source, batch.keys.source)
            encoder.prompts(batch.prompts, batch.keys.prompts)

    def clear() -> None:
        for _ in range(ahead):
            next(stream)

    return Case(run, clear)

"""Fills the caches ahead of training: every picture and prompt of a stage that does not depend on a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from recipes.cologen.caching.encoder import Encoder
from recipes.cologen.caching.store import TensorStore
from recipes.cologen.config.training import DropoutSettings
from recipes.cologen.data.control import available_kinds, control_example
from recipes.cologen.data.customization import paired_example
from recipes.cologen.data.opening import RecordSource
from recipes.cologen.data.record import Example, MissingMetadataError, Record
from recipes.cologen.data.views import VIEWS
from recipes.cologen.errors import BrokenPictureError
from recipes.cologen.flux.transfer import wants_pinned
from recipes.cologen.training.input.batches import Batch, collate


class RecordBatches(NamedTuple):
    """What one record gives: a batch of one for each of its examples, or what is wrong with it."""

    batches: tuple[Batch, ...]
    problem: str | None = None


@dataclass
class Filled:
    """What filling came to."""

    records: int = 0
    encoded: int = 0
    """Pictures and prompts that were not there yet."""
    found: int = 0
    """Those that were."""
    broken: tuple[str, ...] = ()
    """Records that cannot be read, or lack what the stage needs, with the reason."""


class FixedExamples(Dataset[RecordBatches]):
    """The fixed examples of records, by the records' index."""

    def __init__(self, records: RecordSource, num_records: int, task: str, dropout: DropoutSettings) -> None:
        """Choose the task; conditions that training may withhold are examples too."""
        self._records, self._count, self._task, self._dropout = records, num_records, task, dropout

    def __len__(self) -> int:
        """How many records there are."""
        return self._count

    def __getitem__(self, index: int) -> RecordBatches:
        """The fixed examples of a record."""
        try:
            examples = fixed_examples(self._records.record(index), self._task)
        except (BrokenPictureError, MissingMetadataError) as error:
            return RecordBatches((), str(error))
        withheld = list(self._withheld(examples[0]))
        return RecordBatches(tuple(collate([one], keyed=True) for one in examples + withheld))

    def _withheld(self, example: Example) -> Iterator[Example]:
        if self._dropout.text:
            yield replace(example, prompt="", fixed=frozenset({"prompt"}))
        if self._dropout.source:
            black = np.zeros_like(example.source)
            yield replace(example, source=black, fixed=frozenset({"source"}))


def fill(
    encoder: Encoder,
    examples: FixedExamples,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    advance: Callable[[Filled], None] = lambda filled: None,
) -> Filled:
    """Encode and keep what is not kept yet; a cut-off run is resumed.

    Args:
        encoder: With the caches.
        examples: Of one stage.
        rank: Which of `world_size` processes this is; record i goes to process i % world_size.
        world_size: Number of processes.
        workers: Processes that read pictures.
        advance: Called after each record.

    Raises:
        OSError: A cache cannot be written, so there is nothing left to do.
    """
    filled = Filled()
    loader = DataLoader(
        examples,
        batch_size=None,
        sampler=range(rank, len(examples), world_size),
        num_workers=workers,
        pin_memory=wants_pinned(),
        generator=torch.Generator().manual_seed(0),
    )
    for record in loader:
        filled.records += 1
        if record.problem is not None:
            filled.broken += (record.problem,)
        for batch in record.batches:
            _keep(encoder, batch, filled)
        _check_written(encoder)
        advance(filled)
    encoder.flush()
    _check_written(encoder)
    return filled


def _check_written(encoder: Encoder) -> None:
    problem = encoder.stopped()
    if problem is not None:
        raise OSError(f"the caches cannot be filled: {problem}")


def _keep(encoder: Encoder, batch: Batch, filled: Filled) -> None:
    keys, (latents, text) = batch.keys, encoder.stores
    for pixels, key in ((batch.source, keys.source), (batch.target, keys.target)):
        if latents is not None and _is_wanted(latents, key, filled):
            encoder.images(pixels, key)
    if text is not None:
        encoder.check_lengths(batch.prompts)
    if text is not None and _is_wanted(text, keys.prompts, filled):
        encoder.prompts(batch.prompts, keys.prompts)


def _is_wanted(store: TensorStore, keys: tuple[str | None, ...], filled: Filled) -> bool:
    """Whether a batch of one has a key that is not kept yet."""
    if keys[0] is None:
        return False
    if keys[0] in store:
        filled.found += 1
        return False
    filled.encoded += 1
    return True


def fixed_examples(record: Record, task: str) -> list[Example]:
    """Examples that between them hold all fixed parts (`Example.fixed`) that any seed may ask for.

    Raises:
        MissingMetadataError: The record lacks what the task needs.
    """
    if task == "control":
        return [control_example(record, kind) for kind in available_kinds(record)]
    pairs = [pair for pair in record.pairs if pair.task == task]
    if pairs:
        return [paired_example(record, pair) for pair in pairs]
    # The seed decides where a hole or a mark is, which is not fixed, and nothing that is.
    return [VIEWS[task](record, 0)]

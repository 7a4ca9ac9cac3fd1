"""From sample indices to batches: reads records, makes examples, withholds conditions, stacks them.

The way of a record to a training step passes five types:
    SampleIndex    which record, and the seed of all that is random about its example; sampler.py
    Record         one picture with everything that is known about it; data/record.py
    Example        what one task makes of it: source, prompt and target; data/views.py
    Batch          examples as tensors that loader workers hand over; here
    EncodedBatch   tokens of text, sources and noisy target, and the velocity to predict; training/step.py
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipes.cologen.caching.fingerprints import picture_key, prompt_key
from recipes.cologen.config.data import CacheSettings
from recipes.cologen.config.training import DropoutSettings
from recipes.cologen.data.buckets import Bucket, BucketedRecords
from recipes.cologen.data.opening import RecordSource
from recipes.cologen.data.record import Example, MissingMetadataError
from recipes.cologen.data.sampler import BatchSampler, SampleIndex
from recipes.cologen.data.seeding import derive_seed
from recipes.cologen.data.views import VIEWS
from recipes.cologen.errors import BrokenPictureError, PictureError, TooManyBrokenError
from recipes.cologen.flux.transfer import wants_pinned
from recipes.cologen.runs.interruption import STOP_SIGNALS

_MOST_TRIES = 50
STREAM_END = 2**40
"""Past the end of every source, whose index counts on from its start."""


Keyed = bool | Collection[str]
"""Whether examples get cache keys; or the tasks whose examples do."""


class BatchKeys(NamedTuple):
    """Cache keys of a batch; None where something depends on an example's seed, empty without a cache."""

    source: tuple[str | None, ...] = ()
    target: tuple[str | None, ...] = ()
    prompts: tuple[str | None, ...] = ()


NO_KEYS = BatchKeys()


class Batch(NamedTuple):
    """Pictures uint8 [batch, 3, height, width], a prompt and a seed for each."""

    source: Tensor
    target: Tensor
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    skipped: tuple[str, ...] = ()
    """What was wrong with rows that could not be read; other rows replace them."""
    ids: tuple[str, ...] = ()
    """Of the records."""
    replayed: tuple[bool, ...] = ()
    """Which examples are of an earlier stage's task; see `replay.py`."""
    annotators: tuple[str | None, ...] = ()
    """The map that a source still waits for (`Example.annotator`); empty, where no batch can wait."""
    further: tuple[Tensor, ...] = ()
    """Second, third ... sources, each as `source`; every example of a batch has as many."""
    keys: BatchKeys = NO_KEYS
    """By what caches know the pictures and prompts."""


class Examples(Dataset[Example]):
    """Examples of one task by sample index; conditions are withheld by the index's own seed.

    A row that cannot be read, or lacks what the task needs, is skipped: another row, which follows from the
    seed, takes its place, and the example says so. Nothing is made up.
    """

    def __init__(
        self,
        records: RecordSource,
        task: str,
        dropout: DropoutSettings,
        bucketed: BucketedRecords | None = None,
    ) -> None:
        """Choose the task's view, and the buckets that sample indices are of, if they are."""
        self._records, self._view, self._dropout = records, VIEWS[task], dropout
        self._bucketed = bucketed

    def __getitem__(self, index: SampleIndex) -> Example:
        """The example at a sample index.

        Raises:
            TooManyBrokenError: No row can be read among many.
        """
        skipped: list[str] = []
        while len(skipped) < _MOST_TRIES:
            row = self._instead(index, len(skipped)) if skipped else index.record_index
            try:
                example = self._view(self._records.record(row), derive_seed(index.seed, "view"))
                self._check_bucket(example, index)
                refuse_copy(example)
            except (BrokenPictureError, MissingMetadataError) as error:
                skipped.append(str(error))
            else:
                kept = withhold(example, index.seed, self._dropout)
                return replace(kept, seed=index.seed, skipped=tuple(skipped))
        raise TooManyBrokenError(
            f"{len(skipped)} rows in a row could not be read; the first: {skipped[0]}. Mend the data."
        )

    def _instead(self, index: SampleIndex, skipped: int) -> int:
        """The record that takes the place of broken ones: any, or any of the same bucket."""
        number = derive_seed(index.seed, "instead", skipped)
        if self._bucketed is None or index.bucket is None:
            return number % STREAM_END
        members = self._bucketed.members[index.bucket]
        return int(members[number % len(members)])

    def _check_bucket(self, example: Example, index: SampleIndex) -> None:
        """Refuse an example whose bucket is not that of its index."""
        if self._bucketed is None or index.bucket is None:
            return
        bucket = self._bucketed.buckets[index.bucket]
        found = Bucket(*((one.shape[0], one.shape[1]) for one in (example.target, example.source)))
        if found != bucket:
            raise BrokenPictureError(
                f"{example.id}: its bucket is {found}, but by the list of picture sizes {bucket}; if "
                "pictures were exchanged, have the list made again (data.buckets.index says where it is)"
            )


def refuse_copy(example: Example) -> None:
    """Refuse a pair of which nothing changes: rows like that teach to copy the source.

    Raises:
        BrokenPictureError: Source and target are the same picture.
    """
    paired = example.task in ("customization", "editing")
    if paired and np.array_equal(example.source, example.target):
        raise BrokenPictureError(f"{example.id}: source and target of {example.task} are the same picture")


def withhold(example: Example, seed: int, dropout: DropoutSettings) -> Example:
    """Empty the prompt and blacken the source, each by its own chance; a function of the seed."""
    rng = np.random.default_rng(derive_seed(seed, "dropout"))
    no_text, no_source = rng.random(2) < (dropout.text, dropout.source)
    if not (no_text or no_source):
        return example
    return replace(
        example,
        source=np.zeros_like(example.source) if no_source else example.source,
        annotator=None if no_source else example.annotator,
        further=tuple(map(np.zeros_like, example.further)) if no_source else example.further,
        prompt="" if no_text else example.prompt,
        fixed=example.fixed | ({"prompt"} if no_text else set()) | ({"source"} if no_source else set()),
    )


def collate(examples: Sequence[Example], keyed: Keyed = False) -> Batch:
    """Stack examples into a batch, with the keys that caches know them by if they are wanted.

    Raises:
        PictureError: Pictures of one batch differ in size, or examples in how many sources they have; the
            message names two of them.
    """
    _check_counts(examples)
    return Batch(
        source=_stack([(example.id, example.source) for example in examples]),
        target=_stack([(example.id, example.target) for example in examples]),
        prompts=tuple(example.prompt for example in examples),
        seeds=tuple(example.seed for example in examples),
        skipped=tuple(problem for example in examples for problem in example.skipped),
        ids=tuple(example.id for example in examples),
        replayed=tuple(example.replayed for example in examples),
        annotators=tuple(example.annotator for example in examples),
        further=tuple(
            _stack([(example.id, example.further[place]) for example in examples])
            for place in range(len(examples[0].further))
        ),
        keys=keys_of(examples, keyed) if keyed else NO_KEYS,
    )


def kept_tasks(cache: CacheSettings) -> Keyed:
    """Tasks of whose examples caches keep what they are encoded to: True for all, False for none."""
    return cache.folder is not None and (True if cache.stages is None else cache.stages)


def keys_of(examples: Sequence[Example], keyed: Keyed = True) -> BatchKeys:
    """What caches know examples by: keys of what does not depend on a seed."""
    fixed = [one.fixed if keyed is True or (keyed and one.task in keyed) else () for one in examples]
    pairs = list(zip(examples, fixed, strict=True))
    return BatchKeys(
        source=tuple(picture_key(one.source) if "source" in parts else None for one, parts in pairs),
        target=tuple(picture_key(one.target) if "target" in parts else None for one, parts in pairs),
        prompts=tuple(prompt_key(one.prompt) if "prompt" in parts else None for one, parts in pairs),
    )


def batches(
    records: RecordSource,
    task: str,
    sampler: BatchSampler,
    dropout: DropoutSettings,
    workers: int = 0,
    keyed: Keyed = False,
    bucketed: BucketedRecords | None = None,
) -> Iterator[Batch]:
    """This rank's micro-batches from the sampler's position on, without end; with cache keys if asked."""
    return loaded(Examples(records, task, dropout, bucketed), sampler, workers, keyed)


def loaded(
    examples: Dataset[Example], sampler: BatchSampler, workers: int = 0, keyed: Keyed = False
) -> Iterator[Batch]:
    """This rank's micro-batches of examples by sample index; with cache keys if asked."""
    loader = DataLoader(
        examples,
        batch_sampler=sampler,
        collate_fn=partial(collate, keyed=keyed),
        num_workers=workers,
        pin_memory=wants_pinned(),
        # A loader seeds its workers from torch's own generator, which would move it on at every resume.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_leave_interrupts_to_training,
    )
    return iter(loader)


def _leave_interrupts_to_training(worker: int) -> None:
    # A whole job is told to stop, its workers too; they go on until the trainer lets go of them.
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)


def _check_counts(examples: Sequence[Example]) -> None:
    first = examples[0]
    for example in examples:
        if len(example.further) != len(first.further):
            raise PictureError(
                f"examples of one batch differ in how many source pictures they have: {first.id} has "
                f"{1 + len(first.further)}, {example.id} {1 + len(example.further)}; give all as many, or "
                "take one at a time with --set machine.micro_batch=1"
            )


def _stack(pictures: Sequence[tuple[str, np.ndarray]]) -> Tensor:
    first_id, first = pictures[0]
    for identity, picture in pictures:
        if picture.shape != first.shape:
            raise PictureError(
                f"pictures of one batch differ in size: {first_id} is {first.shape[:2]}, {identity} is "
                f"{picture.shape[:2]} (height, width); give all one size with --set data.size=[512,512], "
                "or buckets with --set data.buckets.resolution=512"
            )
    # [batch, height, width, 3] -> [batch, 3, height, width]
    return torch.from_numpy(np.stack([picture for _, picture in pictures])).permute(0, 3, 1, 2)

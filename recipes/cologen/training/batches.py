"""From draws to batches: reads records, makes examples, withholds conditions, stacks; encodes nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipes.cologen.config_training import DropoutSettings
from recipes.cologen.data.record import Example, MissingMetadataError
from recipes.cologen.data.sampler import BatchSampler, Draw, derive_seed
from recipes.cologen.data.views import VIEWS
from recipes.cologen.errors import BrokenPictureError, PictureError, TooManyBrokenError
from recipes.cologen.training.sources import RecordSource

_MOST_TRIES = 50
STREAM_END = 2**40
"""Past the end of every source, whose index counts on from its start."""


class Batch(NamedTuple):
    """Pictures uint8 [batch, 3, height, width], a prompt and a seed for each."""

    source: Tensor
    target: Tensor
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    skipped: tuple[str, ...] = ()
    """What was wrong with rows that could not be read, in whose place others are in the batch."""
    ids: tuple[str, ...] = ()
    """Of the records."""
    replayed: tuple[bool, ...] = ()
    """Which examples are of an earlier stage's task; see `replay.py`."""


class Prepared(NamedTuple):
    """An example, the seed of its noise, and what was wrong with rows that were drawn before it."""

    example: Example
    seed: int
    skipped: tuple[str, ...] = ()
    replayed: bool = False


class Examples(Dataset[Prepared]):
    """Examples of one task, addressed by draws; conditions are withheld by the draw's own seed.

    A row that cannot be read, or lacks what the task needs, is skipped: another row, which follows from the
    draw's seed, takes its place, and the example says so. Nothing is made up.
    """

    def __init__(self, records: RecordSource, task: str, dropout: DropoutSettings) -> None:
        """Choose the task's view."""
        self._records, self._view, self._dropout = records, VIEWS[task], dropout

    def __getitem__(self, draw: Draw) -> Prepared:
        """The example of a draw.

        Raises:
            TooManyBrokenError: No row can be read among many.
        """
        skipped: list[str] = []
        while len(skipped) < _MOST_TRIES:
            index = draw.record_index
            if skipped:
                index = derive_seed(draw.seed, "instead", len(skipped)) % STREAM_END
            try:
                example = self._view(self._records.record(index), derive_seed(draw.seed, "view"))
                refuse_copy(example)
            except (BrokenPictureError, MissingMetadataError) as error:
                skipped.append(str(error))
            else:
                return Prepared(withhold(example, draw.seed, self._dropout), draw.seed, tuple(skipped))
        raise TooManyBrokenError(
            f"{len(skipped)} rows in a row could not be read; the first: {skipped[0]}. Mend the data."
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
        prompt="" if no_text else example.prompt,
    )


def collate(prepared: Sequence[Prepared]) -> Batch:
    """Stack examples into a batch.

    Raises:
        PictureError: Pictures of one batch differ in size; the message names two of them.
    """
    found = [one.example for one in prepared]
    return Batch(
        source=_stack([(example.id, example.source) for example in found]),
        target=_stack([(example.id, example.target) for example in found]),
        prompts=tuple(example.prompt for example in found),
        seeds=tuple(one.seed for one in prepared),
        skipped=tuple(problem for one in prepared for problem in one.skipped),
        ids=tuple(example.id for example in found),
        replayed=tuple(one.replayed for one in prepared),
    )


def batches(
    records: RecordSource, task: str, sampler: BatchSampler, dropout: DropoutSettings, workers: int = 0
) -> Iterator[Batch]:
    """This rank's micro-batches from the sampler's position on, without end."""
    return loaded(Examples(records, task, dropout), sampler, workers)


def loaded(examples: Dataset[Prepared], sampler: BatchSampler, workers: int = 0) -> Iterator[Batch]:
    """This rank's micro-batches of examples that are addressed by draws."""
    loader = DataLoader(
        examples,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        # A loader seeds its workers from torch's own generator, which would move it on at every resume.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_leave_interrupts_to_training,
    )
    return iter(loader)


def _leave_interrupts_to_training(worker: int) -> None:
    # A whole job is told to stop, its workers too; they go on until the trainer lets go of them.
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _stack(pictures: Sequence[tuple[str, np.ndarray]]) -> Tensor:
    first_id, first = pictures[0]
    for identity, picture in pictures:
        if picture.shape != first.shape:
            raise PictureError(
                f"pictures of one batch differ in size: {first_id} is {first.shape[:2]}, {identity} is "
                f"{picture.shape[:2]} (height, width); give all one size with --set data.size=[512,512]"
            )
    return torch.from_numpy(np.stack([picture for _, picture in pictures])).permute(0, 3, 1, 2)


def to_unit_range(pixels: Tensor, device: torch.device) -> Tensor:
    """Pixels uint8 [..., height, width] as float32 in [-1, 1]."""
    return pixels.to(device, torch.float32) / 127.5 - 1.0

"""Mixes examples of earlier stages' tasks into a stage, so that the router keeps seeing them.

Whether a sample index is replayed, and which task and record it gets, all follow from its own seed. So
nothing needs to be kept for a resumed run, and neither ranks nor micro-batches change the examples. A
replayed record is sampled with replacement from that task's source, which has no epochs here.

Replayed examples have the task loss only: the veteran loss, and the share that is logged, are of the stage's
own examples, since rho says how much of *its* task the newest expert is to answer, and should answer nothing
of the others'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from recipes.cologen.config.training import DropoutSettings
from recipes.cologen.data.opening import DataSource
from recipes.cologen.data.record import Example
from recipes.cologen.data.sampler import SampleIndex
from recipes.cologen.data.seeding import derive_seed
from recipes.cologen.flux.transfer import to_device
from recipes.cologen.training.input.batches import STREAM_END, Batch, Examples


class Replayed(NamedTuple):
    """One earlier task that a stage replays."""

    task: str
    below: float
    """It gets the sample indices whose random number is below this, and above that of the task before."""
    examples: Examples
    num_records: int


class ReplayedExamples(Dataset[Example]):
    """Examples of a stage's own task, and at times of an earlier one.

    Args:
        own: Of the stage's own task.
        data: Where the others' records come from.
        replay: Fraction of the examples that is of each earlier task.
        dropout: As for the stage's own.

    Raises:
        DataSetError: No data set serves an earlier task.
    """

    def __init__(
        self, own: Examples, data: DataSource, replay: Mapping[str, float], dropout: DropoutSettings
    ) -> None:
        """Open what is replayed; see the class."""
        self._own = own
        self._replayed: list[Replayed] = []
        below = 0.0
        for task, fraction in replay.items():
            below += fraction
            source = data.stage(task)
            examples = Examples(source.records, task, dropout)
            self._replayed.append(Replayed(task, below, examples, source.num_records or STREAM_END))

    def __getitem__(self, index: SampleIndex) -> Example:
        """The example at a sample index.

        Raises:
            TooManyBrokenError: No row can be read among many.
        """
        number = np.random.default_rng(derive_seed(index.seed, "replay")).random()
        for replayed in self._replayed:
            if number < replayed.below:
                row = derive_seed(index.seed, "replayed", replayed.task) % replayed.num_records
                return replace(replayed.examples[SampleIndex(row, index.seed)], replayed=True)
        return self._own[index]


def own_tokens(batch: Batch, num_tokens: int, device: torch.device) -> Tensor | None:
    """Which source tokens are of the stage's own task: bool [batch, tokens]; None where all are."""
    if not any(batch.replayed):
        return None
    own = to_device(torch.tensor(batch.replayed), device).logical_not()
    return own[:, None].expand(-1, num_tokens)  # [batch] -> [batch, tokens]

"""Says which records a step trains on: an order that follows from a seed and a position alone.

A sampler keeps the count of what it gave out itself and knows its rank, so it is never handed to
`accelerator.prepare`: accelerate would restart its epochs on resume and cut its batches a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.cologen.data.bucket_order import BucketOrder
from recipes.cologen.data.seeding import derive_seed
from recipes.cologen.errors import CologenError

_STREAM = 2**40
"""Length of the part of an endless source that one seed reads."""


class BatchSizeError(CologenError, ValueError):
    """A batch cannot be dealt to the ranks and micro-batches evenly."""


class SampleIndex(NamedTuple):
    """Which example to make: the record's index, and the seed of its view, its noise and its dropout."""

    record_index: int
    seed: int
    bucket: int | None = None
    """Number of the bucket that the example belongs to, where there are buckets."""


class BatchSampler:
    """Deals an endless stream of sample indices to ranks in micro-batches.

    The stream is the source in a new random order each epoch, or, for an endless source, one long run of it.
    Batches may cross the end of an epoch, so every one is full and every rank gets as many. Position p of the
    stream belongs to the same example whatever the number of ranks and the size of micro-batches.

    Args:
        num_records: Length of the source; None when it is endless.
        batch_size: Draws a step, over all ranks.
        micro_batch: Draws that one rank takes at once; None: its whole share of the batch.
        seed: Decides the order and the seeds of all examples.
        rank: Which of `world_size` processes this is.
        world_size: Number of processes.
        order: Of bucketed records, in place of a new random order each epoch. Micro-batches are then of one
            bucket, and position p still belongs to the same example for every number of ranks.

    Raises:
        BatchSizeError: The batch is not a multiple of world_size * micro_batch, or a number is not positive;
            or a group of the order does not consist of whole micro-batches.
    """

    def __init__(
        self,
        num_records: int | None,
        *,
        batch_size: int,
        seed: int,
        micro_batch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        order: BucketOrder | None = None,
    ) -> None:
        """Check the numbers; see the class."""
        micro = micro_batch if micro_batch is not None else max(1, batch_size // world_size)
        if batch_size < 1 or micro < 1 or not 0 <= rank < world_size or batch_size % (world_size * micro):
            raise BatchSizeError(
                f"a batch of {batch_size} cannot be dealt evenly to {world_size} process(es) in "
                f"micro-batches of {micro}; make stages.*.batch_size a multiple of "
                f"{world_size * max(1, micro)}, or change machine.micro_batch"
            )
        if num_records is not None and num_records < 1:
            raise BatchSizeError(f"the source holds {num_records} records; it needs at least one")
        if order is not None and (batch_size % order.group or order.group % micro):
            raise BatchSizeError(
                f"groups of {order.group} examples of one bucket do not fit a batch of {batch_size} in "
                f"micro-batches of {micro}: data.buckets.group should divide stages.*.batch_size and be a "
                "multiple of machine.micro_batch (without one: of a process's share of the batch)"
            )
        self.batch_size = batch_size
        self._bucket_order = order
        self.micro_batches = batch_size // (world_size * micro)
        self.position = 0
        self._num_records, self._seed, self._micro = num_records, seed, micro
        self._rank, self._world_size = rank, world_size
        self._start = derive_seed(seed, "start") % 2**20 * _STREAM
        self._epoch_order: tuple[int, NDArray[np.int64]] | None = None

    @property
    def epoch(self) -> int:
        """How often the source has been gone through; 0 for ever when it is endless."""
        if self._bucket_order is not None:
            return self._bucket_order.epoch(self.position)
        return 0 if self._num_records is None else self.position // self._num_records

    def at(self, position: int) -> SampleIndex:
        """The sample index at a position of the stream."""
        seed = derive_seed(self._seed, "draw", position)
        if self._bucket_order is not None:
            bucket, index = self._bucket_order.at(position)
            return SampleIndex(index, seed, bucket)
        if self._num_records is None:
            return SampleIndex(self._start + position, seed)
        epoch, place = divmod(position, self._num_records)
        return SampleIndex(int(self._order(epoch)[place]), seed)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        """This rank's micro-batches from the position on, without end; the position moves with each step."""
        while True:
            for micro in range(self.micro_batches):
                first = self.position + (micro * self._world_size + self._rank) * self._micro
                indices = [self.at(first + place) for place in range(self._micro)]
                if micro == self.micro_batches - 1:
                    self.position += self.batch_size
                yield indices

    def state_dict(self) -> dict[str, int]:
        """What a resumed run needs."""
        return {"position": self.position, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where another sampler of the same settings was.

        Raises:
            BatchSizeError: The position is not the end of a batch, so it belongs to another batch size.
        """
        if state["position"] < 0 or state["position"] % self.batch_size:
            raise BatchSizeError(
                f"position {state['position']} is not the end of a batch of {self.batch_size}; "
                "the checkpoint was made with another stages.*.batch_size"
            )
        self.position = state["position"]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The source's indices in the order of one epoch; the newest epoch is kept."""
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            rng = np.random.default_rng(derive_seed(self._seed, "epoch", epoch))
            self._epoch_order = (epoch, rng.permutation(self._num_records or 0))
        return self._epoch_order[1]

"""The order of bucketed records: groups of one bucket, by a seed and a position alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.cologen.data.seeding import derive_seed

_ORDERS_KEPT = 2
"""An epoch's groups are of two turns through a bucket: what was carried over, and the epoch's own."""


class Place(NamedTuple):
    """Where a position of the stream lies."""

    bucket: int
    record_index: int


class _Epoch(NamedTuple):
    """The groups of one epoch in order: their buckets, and their numbers within those."""

    number: int
    first: int
    """Groups before it."""
    buckets: NDArray[np.int64]
    numbers: NDArray[np.int64]


class BucketOrder:
    """An endless stream of record indices in groups of one bucket.

    Each bucket is gone through again and again, every time in a new order; its stream is cut into groups. An
    epoch is as many groups of each bucket as it fills, in random order; what does not fill a group is carried
    into the next epoch. So in the long run every record comes equally often, whatever bucket it is in, and
    none is dropped. A position is found without going through those before it.

    Args:
        members: Indices of the records of each bucket, none empty.
        group: Examples in a row that share a bucket.
        seed: Decides every order.
    """

    def __init__(self, members: Sequence[NDArray[np.int64]], group: int, seed: int) -> None:
        """Take the buckets; see the class."""
        self.group, self._members, self._seed = group, tuple(members), seed
        self._lengths = np.array([len(of) for of in members], dtype=object)  # Python's integers: no overflow
        self._epoch: _Epoch | None = None
        self._orders: dict[int, dict[int, NDArray[np.int64]]] = {}

    def members(self, bucket: int) -> NDArray[np.int64]:
        """Indices of a bucket's records."""
        return self._members[bucket]

    def at(self, position: int) -> Place:
        """The bucket and the record at a position."""
        group, place = divmod(position, self.group)
        epoch = self._epoch_of(group)
        bucket, number = (int(of[group - epoch.first]) for of in (epoch.buckets, epoch.numbers))
        turn, index = divmod(number * self.group + place, len(self._members[bucket]))
        return Place(bucket, int(self._members[bucket][self._order(bucket, turn)[index]]))

    def epoch(self, position: int) -> int:
        """The epoch that a position belongs to."""
        return self._epoch_of(position // self.group).number

    def _filled(self, epoch: int) -> NDArray[np.object_]:
        """Groups that each bucket has filled before an epoch."""
        filled: NDArray[np.object_] = epoch * self._lengths // self.group
        return filled

    def _epoch_of(self, group: int) -> _Epoch:
        known = self._epoch
        if known is None or not known.first <= group < known.first + len(known.buckets):
            number = group * self.group // int(self._lengths.sum())
            while self._filled(number + 1).sum() <= group:
                number += 1
            self._epoch = self._make_epoch(number)
        assert self._epoch is not None
        return self._epoch

    def _make_epoch(self, number: int) -> _Epoch:
        before, after = self._filled(number), self._filled(number + 1)
        buckets = np.repeat(np.arange(len(self._members)), (after - before).astype(np.int64))
        numbers = np.concatenate([np.arange(first, end) for first, end in zip(before, after, strict=True)])
        order = np.random.default_rng(derive_seed(self._seed, "groups", number)).permutation(len(buckets))
        return _Epoch(number, int(before.sum()), buckets[order], numbers.astype(np.int64)[order])

    def _order(self, bucket: int, turn: int) -> NDArray[np.int64]:
        """A bucket's order the `turn`-th time that it is gone through."""
        known = self._orders.setdefault(bucket, {})
        if turn not in known:
            if len(known) == _ORDERS_KEPT:
                del known[min(known)]
            rng = np.random.default_rng(derive_seed(self._seed, "bucket", bucket, turn))
            known[turn] = rng.permutation(len(self._members[bucket]))
        return known[turn]

"""Aspect buckets: the sizes that pictures may get, and which records of a stage share one.

Sizes are (height, width) everywhere here. A *compound* bucket is the size of an example's target with that of
its source, which has a shape of its own: only examples of one compound bucket can be stacked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from diffusers.training_utils import find_nearest_bucket, generate_aspect_ratio_buckets
from numpy.typing import NDArray

from recipes.cologen.config.data import BucketSettings

Size = tuple[int, int]
"""Height and width in pixels."""


class Bucket(NamedTuple):
    """The sizes of an example's target and source."""

    target: Size
    source: Size

    def __str__(self) -> str:
        """Height x width, and where the source differs that of the source too."""
        target, source = (f"{height}x{width}" for height, width in self)
        return target if target == source else f"{target} from {source}"


@dataclass(frozen=True)
class Buckets:
    """The sizes among which a picture gets the one nearest to its shape."""

    sizes: tuple[Size, ...]

    def nearest(self, height: int, width: int) -> Size:
        """The size that is nearest in shape, by diffusers' measure; areas do not count much."""
        return self.sizes[find_nearest_bucket(height, width, self.sizes)]


class BucketedRecords(NamedTuple):
    """The compound buckets that occur in a stage, and the indices of each one's records."""

    buckets: tuple[Bucket, ...]
    members: tuple[NDArray[np.int64], ...]


def buckets_of(settings: BucketSettings) -> Buckets | None:
    """The buckets that the settings ask for; None without."""
    if settings.resolution is None:
        return Buckets(settings.sizes) if settings.sizes else None
    made: Any = generate_aspect_ratio_buckets(settings.resolution, settings.step)
    return Buckets(tuple((int(height), int(width)) for height, width in made))


def bucketed(sizes: NDArray[np.int32], buckets: Buckets) -> BucketedRecords:
    """Sort records into compound buckets, larger ones first.

    Args:
        sizes: Of each record, as stored: target height and width, source height and width, [records, 4];
            0 where a record cannot be read. Those go with the largest bucket, where they are found broken,
            counted and replaced as any other.
        buckets: The sizes that pictures may get.
    """
    shapes, which = np.unique(sizes, axis=0, return_inverse=True)
    found: dict[Bucket | None, list[NDArray[np.int64]]] = {}
    for number, shape in enumerate(shapes.tolist()):
        bucket = None if 0 in shape else Bucket(buckets.nearest(*shape[:2]), buckets.nearest(*shape[2:]))
        found.setdefault(bucket, []).append(np.flatnonzero(which.reshape(-1) == number))
    members = {bucket: np.sort(np.concatenate(parts)) for bucket, parts in found.items()}
    unread = members.pop(None, np.empty(0, np.int64))
    ordered = sorted(((bucket, of) for bucket, of in members.items() if bucket), key=_largest_first)
    if not ordered:
        ordered = [(Bucket(buckets.sizes[0], buckets.sizes[0]), np.empty(0, np.int64))]
    largest, first = ordered[0]
    ordered[0] = (largest, np.concatenate([first, unread]))
    return BucketedRecords(tuple(bucket for bucket, _ in ordered), tuple(of for _, of in ordered))


def _largest_first(entry: tuple[Bucket, NDArray[np.int64]]) -> tuple[int, Bucket]:
    return -len(entry[1]), entry[0]

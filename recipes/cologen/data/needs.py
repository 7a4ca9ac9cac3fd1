"""What of a picture the tasks read: the rest is not decoded, since decoding is most of the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from recipes.cologen.stages import PAIRED_TASKS


class Needs(NamedTuple):
    """Parts of a record that some tasks need."""

    objects: bool
    """Objects with their masks: for holes and marks."""
    maps: bool
    """Depth and classes."""
    other_pairs: frozenset[str]
    """Tasks whose pairs are not needed."""


def needs_of(tasks: Sequence[str]) -> Needs:
    """What these tasks read."""
    return Needs(
        objects=bool({"inpainting", "grounding"} & set(tasks)),
        maps="control" in tasks,
        other_pairs=frozenset(PAIRED_TASKS) - set(tasks),
    )

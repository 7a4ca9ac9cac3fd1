"""Holds many small records in a few flat buffers, so that a row costs its bytes and no Python object.

A list of dicts costs ten times its text, and worker processes copy it page by page: every look at an object
counts a reference, which writes to the page that the object lies on. Bytes that are only read stay shared.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


class PackedBytes:
    """Byte strings by index, one after the other in one buffer: 8 bytes each beside their own."""

    def __init__(self, items: Iterable[bytes] = ()) -> None:
        """Take the first items."""
        self._buffer = bytearray()
        self._ends = array("q")
        for item in items:
            self.append(item)

    def append(self, item: bytes) -> None:
        """Add one at the end."""
        self._buffer += item
        self._ends.append(len(self._buffer))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._ends)

    def __getitem__(self, index: int) -> bytes:
        """A copy of the one at an index from 0 up."""
        if not 0 <= index < len(self._ends):
            raise IndexError(index)
        start = self._ends[index - 1] if index else 0
        return bytes(self._buffer[start : self._ends[index]])

    def __iter__(self) -> Iterator[bytes]:
        """All of them in order."""
        return (self[index] for index in range(len(self)))


class KeyIndex:
    """Where keys stand in a list, by 64-bit hashes in sorted order: 16 bytes a key.

    Two keys may share a hash, so a look-up compares it with what stands there.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        """Hash and sort the keys of a list, in the list's order."""
        hashes = np.frombuffer(array("Q", map(_hash, keys)), dtype=np.uint64)
        self._order: NDArray[np.int64] = np.argsort(hashes, kind="stable")
        self._hashes: NDArray[np.uint64] = hashes[self._order]

    def places(self, key: str) -> list[int]:
        """Where a key may stand, the last place first: most often one place or none."""
        wanted = np.uint64(_hash(key))
        first, end = (int(np.searchsorted(self._hashes, wanted, side)) for side in ("left", "right"))
        return [int(place) for place in self._order[first:end][::-1]]


def _hash(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")

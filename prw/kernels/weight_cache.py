"""The weight cache: all experts' matrices stacked into one, copied once and not at every forward.

Copies of frozen weights are kept as long as their storages live, and renewed when torch counts a change in
place. Torch does not count the changes that a sharded optimiser makes, so a weight that trains is copied at
every forward: the newest expert's, and no other.
"""

# Shapes: a matrix is [rank, wide]; a stack is [sum of ranks, wide], or [experts * height, wide] if padded.

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

Mark = tuple[int, int, int, tuple[int, ...], tuple[int, ...]]
UNCOUNTED = -1
"""Stands for the version of a matrix whose changes torch may not count."""


@dataclass(eq=False)
class Stack:
    """Rows of several matrices in one tensor, and what each was copied from."""

    rows: Tensor
    marks: list[Mark] = field(default_factory=list)
    owners: list[StorageWeakRef] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        """Whether all copied storages still live; else an address may belong to another weight."""
        return not any(owner.expired() for owner in self.owners)


class WeightCache:
    """The stacks of all living models, for one thread at a time."""

    def __init__(self) -> None:
        """Start empty."""
        self._stacks: dict[tuple[object, ...], Stack] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Count the stacks."""
        return len(self._stacks)

    def of(self, matrices: Sequence[Tensor], dtype: torch.dtype, height: int = 0) -> Tensor:
        """Stack matrices; only those that are new or have changed are copied.

        Args:
            matrices: Each of shape [rank, wide]; ranks may differ, dtype and device may not.
            dtype: Of the stack.
            height: Rows of the stack for each matrix, padded with zeros; 0 means as many as it has.

        Returns:
            Of shape [sum of ranks, wide], or [matrices x height, wide].
        """
        first = matrices[0]
        storage, _, *layout = mark_of(first)
        key = (storage, *layout, dtype, height)
        with self._lock:
            stack = self._stacks.get(key)
            size = sum(height or matrix.shape[0] for matrix in matrices)
            if stack is None or not stack.alive or stack.rows.shape[0] < size:
                for name, kept in self._stacks.copy().items():  # of which some may go meanwhile
                    if not kept.alive:
                        self._stacks.pop(name, None)
                with torch.inference_mode(False):  # a stack made for inference could not be renewed later
                    stack = self._stacks[key] = Stack(first.new_empty(size, first.shape[1], dtype=dtype))
                owner = first if first._base is None else first._base
                weakref.finalize(owner, self._drop, key, weakref.ref(stack)).atexit = False
            return renewed(stack, matrices, height)

    def _drop(self, key: tuple[object, ...], stack: weakref.ref[Stack]) -> None:
        """Forget a stack; without the lock, since a finalizer may run in the thread that holds it."""
        if self._stacks.get(key) is stack():
            self._stacks.pop(key, None)


def renewed(stack: Stack, matrices: Sequence[Tensor], height: int) -> Tensor:
    """Copy into a stack what is new or has changed, and what trains in any case."""
    start = 0
    for place, matrix in enumerate(matrices):
        stop, training = start + (height or matrix.shape[0]), trains(matrix)
        mark = mark_of(matrix, training)
        if training or place >= len(stack.marks) or stack.marks[place] != mark:
            stack.rows[start : start + matrix.shape[0]].copy_(matrix)
            stack.rows[start + matrix.shape[0] : stop].zero_()
            same_size = place < len(stack.marks) and stack.marks[place][3] == mark[3]
            cut = place + 1 if same_size else None  # else this one's rows overwrote what followed
            stack.marks[place:cut] = [mark]
            stack.owners[place:cut] = [StorageWeakRef(matrix.untyped_storage())]
        start = stop
    return stack.rows[:start]


def trains(matrix: Tensor) -> bool:
    """Return whether a matrix, or what it is a view of, is a weight that trains."""
    whole = matrix if matrix._base is None else matrix._base
    return matrix.requires_grad or whole.requires_grad


def mark_of(matrix: Tensor, training: bool = False) -> Mark:
    """Identify the numbers that a matrix holds: its memory, and torch's count of changes in place.

    A weight that trains is never found unchanged: its copy is renewed once it is frozen.
    """
    storage: int = matrix.untyped_storage()._cdata
    version = 0 if matrix.is_inference() else matrix._version
    version = UNCOUNTED if training else version
    return storage, version, int(matrix.storage_offset()), tuple(matrix.shape), matrix.stride()


CACHE = WeightCache()


def stacked(matrices: Sequence[Tensor], dtype: torch.dtype, fixed: bool, height: int = 0) -> Tensor:
    """Stack matrices on top of one another, [sum of ranks, wide].

    Args:
        matrices: Each of shape [rank, wide].
        dtype: Of the result.
        fixed: Whether torch counts changes of the weights, so that copies can be cached.
        height: Rows of the stack for each matrix, padded with zeros; 0 means as many as it has.
    """
    first = matrices[0]
    if len(matrices) == 1 and first.dtype == dtype:
        return first
    if len(matrices) == 1 and trains(first):
        # Contiguous like a cached copy: a product may round differently if its matrix is transposed.
        return first.to(dtype, memory_format=torch.contiguous_format)
    # A CUDA graph must own what it reads: a cached stack may be gone, or stale, when it is replayed.
    recorded = first.is_cuda and torch.cuda.is_current_stream_capturing()
    if fixed and not recorded and not any(matrix.is_meta or matrix.is_inference() for matrix in matrices):
        return CACHE.of(matrices, dtype, height)
    cast = [matrix.to(dtype) for matrix in matrices]
    return torch.cat([F.pad(matrix, (0, 0, 0, height - len(matrix))) for matrix in cast] if height else cast)

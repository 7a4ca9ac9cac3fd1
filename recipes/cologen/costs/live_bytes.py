"""Counts bytes of tensors: those alive at once while code runs, and those that autograd keeps for backward.

Both count storages, so views cost nothing and a tensor that is kept twice counts once. Both work on real
tensors and on fake ones (`FakeTensorMode`), which have sizes but no data.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is entered, `peak` is the most that new tensors have held at once.

    Scratch space inside of one kernel is not seen: it is the kernel's own.

    Args:
        known: Tensors that were there before, such as weights; they are not counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """Start from nothing; see the class."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]
        self._seen: set[int] = {storage._cdata for storage in self._known}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and count what it gives."""
        given = function(*args, **(kwargs or {}))
        for value in tree_leaves(given):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return given

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


@contextmanager
def saved_bytes(known: Iterable[Tensor] = ()) -> Iterator[list[int]]:
    """Collect the sizes of what autograd saves inside, without weights and without counting anything twice.

    What a checkpointed block saves while it is recomputed is not seen: only its inputs are kept. All that
    was saved is held until the end of the block, so `backward` comes after it.
    """
    ignored = [tensor.untyped_storage() for tensor in known]
    held = {storage._cdata: storage for storage in ignored}
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in held:
            held[storage._cdata] = storage
            sizes.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes

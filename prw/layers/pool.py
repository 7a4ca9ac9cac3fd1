"""What all sites of one pool share: settings, the experts' names, and the open `with` blocks."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prw.config import PoolSettings, matching, one_form
from prw.errors import PoolError
from prw.kernels import forced
from prw.layers.samples import BatchSizes, Samples
from prw.routing import Routing

if TYPE_CHECKING:
    from prw.layers.site import Site


@dataclass(frozen=True, eq=False)
class Scope:
    """What the enclosing `with` blocks ask of every site.

    Attributes:
        size: Only the first `size` experts exist; None means all.
        routed: Which tokens are routed, bool of shape [batch, tokens]; None means all.
        samples: Which sample each row belongs to; None means that axis 0 is the sample.
        disabled: Whether the experts are switched off.
    """

    size: int | None = None
    routed: Tensor | None = None
    samples: Samples | None = None
    disabled: bool = False
    _moved: dict[torch.device, tuple[int, Tensor]] = field(init=False, default_factory=dict)

    def agrees(self, other: Scope) -> bool:
        """Return whether another scope is equivalent."""
        same_pool = self.size == other.size and self.disabled == other.disabled
        return same_pool and self.routed is other.routed and self.samples is other.samples

    def routed_on(self, device: torch.device) -> Tensor | None:
        """Return `routed` on a device; it is moved there once for all sites, unless it has changed."""
        routed = self.routed
        if (
            routed is None
            or routed.device == device
            or torch.compiler.is_compiling()
            or routed.is_inference()
        ):
            return None if routed is None else routed.to(device)
        version, moved = self._moved.get(device, (-1, routed))
        if version != routed._version:
            moved = routed.to(device)
            self._moved[device] = (routed._version, moved)
        return moved


EVERYTHING = Scope()


@dataclass(frozen=True, eq=False)
class Block:
    """One open `with` block: the thread that opened it, and which fields of the scope it changes."""

    thread: int
    changes: dict[str, Any]


class Pool:
    """The shared state of a pool of experts; the weights live in the projections.

    Attributes:
        settings: The pool's settings.
        kernel: The kernel that was requested.
        kernel_from: Where it was requested: in the settings, or in the environment.
        experts: Names of the experts, oldest first.
        expert_ranks: Expert to rank pattern, for experts whose ranks are not the settings'.
        scope: The combined effect of the open `with` blocks. All threads share it, because the autograd
            engine recomputes checkpointed blocks in threads of its own; so one thread at a time may open
            blocks.
        recorder: Where decisions go, or None.
        batch_sizes: What the running forward of the model was called with; None where tokens are routed.
        settled: Names of the sites that a recorded forward has reached, or that were reported as not reached.
        all_settled: Whether that is every site.
        weights_read: Ids of the projections whose weights were read since the recording began.
        called: Ids of the projections that were called since then; not kept once all sites are settled.
        sites: The sites of the pool, in the model's order.
    """

    def __init__(
        self,
        settings: PoolSettings,
        experts: tuple[str, ...] = (),
        expert_ranks: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        """Start with the given experts, all in use and nothing recorded."""
        self.settings = settings
        self.kernel, self.kernel_from = forced(settings.kernel)
        self.experts = experts
        self.expert_ranks = {} if expert_ranks is None else expert_ranks
        self.scope = EVERYTHING
        self.recorder: Routing | None = None
        self.batch_sizes = BatchSizes() if settings.granularity == "sample" else None
        self.settled: set[str] = set()
        self.all_settled = False
        self.weights_read: set[int] = set()
        self.called: set[int] = set()
        self.sites: list[Site] = []
        self._blocks: list[Block] = []

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without the open blocks, which nothing would close in the copy."""
        return {**self.__dict__, "scope": EVERYTHING, "recorder": None, "_blocks": []}

    @property
    def size(self) -> int:
        """Number of experts in use under the open blocks."""
        if self.scope.disabled:
            return 0
        return len(self.experts) if self.scope.size is None else self.scope.size

    def index(self, name: str) -> int:
        """Return an expert's position.

        Raises:
            PoolError: if the pool has no such expert.
        """
        if name not in self.experts:
            name = one_form(name)  # not before: torch.compile cannot trace it
        if name not in self.experts:
            known = ", ".join(self.experts) or "none yet"
            raise PoolError(f"the pool has no expert {name!r}; it has: {known}.")
        return self.experts.index(name)

    def rank_at(self, index: int, path: str) -> int:
        """Return the rank of an expert at a projection."""
        own = self.expert_ranks.get(self.experts[index]) if index < len(self.experts) else None
        return matching(own, path, self.settings.rank_at(path))

    def check_settled(self, what: str) -> None:
        """Refuse to change the pool's order inside a `with` block that counts on it.

        Raises:
            PoolError: if a block is open.
        """
        if self._blocks:
            raise PoolError(
                f"{what} changes which expert is which, and a `with` block of this pool (record, route_only, "
                "samples, as_of or disabled) is open that counts on it. Leave the block first."
            )

    @contextmanager
    def narrowed(self, **changes: Any) -> Iterator[None]:
        """Change fields of the scope inside a `with` block; blocks nest.

        Raises:
            PoolError: if another thread has a block open, whose forwards this one would change.
        """
        before = self.scope
        block = None if torch.compiler.is_compiling() else self._open(changes)
        if block is None:  # a trace is of one thread, and its blocks end with it
            self.scope = replace(before, **changes)
        try:
            yield
        finally:
            if block is None:
                self.scope = before
            else:
                self._close(block)

    @contextmanager
    def recording(self) -> Iterator[Routing]:
        """Collect the decisions made inside a `with` block.

        Raises:
            PoolError: if another recording is open, since each decision is counted once, or if another thread
            has a block open.
        """
        if self.recorder is not None:
            raise PoolError(
                "this pool is being recorded already; use the routing of the outer `with weave.record()`."
            )
        block = None if torch.compiler.is_compiling() else self._open({})
        experts = self.experts if self.scope.size is None else self.experts[: self.scope.size]
        self.recorder = Routing(experts, self.settings.share)
        self.weights_read.clear()
        self.called.clear()
        try:
            yield self.recorder
        finally:
            self.recorder = None
            if block is not None:
                self._close(block)

    def _open(self, changes: dict[str, Any]) -> Block:
        block = Block(threading.get_ident(), changes)
        self._blocks.append(block)  # before looking, so that of two threads at once none misses the other
        if any(other.thread != block.thread for other in self._blocks):
            self._blocks.remove(block)
            raise PoolError(
                "another thread is inside a `with` block of this pool (record, route_only, as_of or "
                "disabled). All threads share what such a block asks for, so its forwards would change too. "
                "Let one thread at a time open blocks, under a lock of yours, or give each thread its own "
                "copy of the model."
            )
        self._settle()
        return block

    def _close(self, block: Block) -> None:
        self._blocks.remove(block)
        self._settle()

    def _settle(self) -> None:
        """Compute the scope from the open blocks; later ones override earlier ones."""
        scope = EVERYTHING
        for block in self._blocks:
            scope = replace(scope, **block.changes) if block.changes else scope
        self.scope = scope

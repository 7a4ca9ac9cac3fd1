"""What all sites of one pool share: settings, the experts' names, and the open `with` blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from prw.config import PoolSettings
from prw.errors import PoolError
from prw.routing import Routing


@dataclass(frozen=True, eq=False)
class Scope:
    """What the enclosing `with` blocks ask of every site.

    Attributes:
        size: Only the first `size` experts exist; None means all.
        routed: Which tokens are routed, bool of shape [batch, tokens]; None means all.
        disabled: Whether the experts are switched off.
    """

    size: int | None = None
    routed: Tensor | None = None
    disabled: bool = False


EVERYTHING = Scope()


class Pool:
    """The shared state of a pool of experts; the weights live in the projections.

    Attributes:
        settings: The pool's settings.
        experts: Names of the experts, oldest first.
        scope: What the enclosing `with` blocks ask for. It is shared by all threads, because the autograd
            engine recomputes checkpointed blocks in threads of its own.
        recorder: Where decisions go, or None.
    """

    def __init__(self, settings: PoolSettings, experts: tuple[str, ...] = ()) -> None:
        """Start with the given experts, all in use and nothing recorded."""
        self.settings = settings
        self.experts = experts
        self.scope = EVERYTHING
        self.recorder: Routing | None = None

    @property
    def size(self) -> int:
        """Number of experts in use here and now."""
        if self.scope.disabled:
            return 0
        return len(self.experts) if self.scope.size is None else self.scope.size

    def index(self, name: str) -> int:
        """Give an expert's position.

        Raises:
            PoolError: if the pool has no such expert.
        """
        if name not in self.experts:
            known = ", ".join(self.experts) or "none yet"
            raise PoolError(f"the pool has no expert {name!r}; it has: {known}.")
        return self.experts.index(name)

    @contextmanager
    def narrowed(self, **changes: Any) -> Iterator[None]:
        """Change fields of the scope inside a `with` block; blocks nest."""
        before = self.scope
        self.scope = replace(before, **changes)
        try:
            yield
        finally:
            self.scope = before

    @contextmanager
    def recording(self) -> Iterator[Routing]:
        """Collect the decisions made inside a `with` block.

        Raises:
            PoolError: if another recording is open, since each decision is counted once.
        """
        if self.recorder is not None:
            raise PoolError(
                "this pool is being recorded already; use the routing of the outer `with weave.record()`."
            )
        experts = self.experts if self.scope.size is None else self.experts[: self.scope.size]
        self.recorder = Routing(experts, self.settings.share)
        try:
            yield self.recorder
        finally:
            self.recorder = None

"""Gradient checkpointing: the forwards that backward may recompute, and the `with` blocks they ran under."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

from prw.errors import RoutingError
from prw.execution import under_checkpointing
from prw.layers.pool import Scope


class Note:
    """One forward that backward may recompute; it lives as long as that forward's graph."""

    def __init__(self, scope: Scope) -> None:
        """Keep the forward's scope."""
        self.scope = scope


class CheckpointedForwards:
    """The forwards of one site that backward may recompute, since the last backward that did.

    Backward recomputes a forward under the `with` blocks that are open at that time, and does not know which
    forward it is. So the gradients are correct only if every candidate ran under those blocks.
    """

    def __init__(self) -> None:
        """Start with no forwards."""
        self._alive: weakref.WeakSet[Note] = weakref.WeakSet()
        self._without_graph: list[Note] = []
        self._ran_again = False

    def __reduce__(self) -> tuple[type[CheckpointedForwards], tuple[()]]:
        """Copy and pickle without the forwards, whose graphs stay where they are."""
        return CheckpointedForwards, ()

    def add(self, scope: Scope, *tensors: Tensor) -> None:
        """Register a forward, if it runs under checkpointing.

        Args:
            scope: The scope of the open `with` blocks.
            tensors: Input and results of the forward; the note lives as long as the graph of the first that
                has one, so that an output that is dropped without backward is forgotten.
        """
        if not under_checkpointing():
            return
        if self._ran_again:
            self._alive.clear()
            self._without_graph.clear()
            self._ran_again = False
        note = Note(scope)
        graph: Any = next((tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None), None)
        if graph is not None:
            graph.metadata.setdefault("prw", []).append(note)
            self._alive.add(note)
        elif not any(held.scope.agrees(scope) for held in self._without_graph):
            self._without_graph.append(note)

    def check(self, scope: Scope, site: str) -> None:
        """Refuse to recompute a forward under other `with` blocks than its own.

        Raises:
            RoutingError: if a candidate ran under others.
        """
        self._ran_again = True
        others = [note.scope for note in (*self._alive, *self._without_graph) if not note.scope.agrees(scope)]
        if others:
            raise RoutingError(
                f"gradient checkpointing recomputes site {site}, and a forward since the last backward() ran "
                "under other `with` blocks (route_only, samples, as_of or disabled) than are open now, so it "
                "would route differently. Call backward() inside that block, and before the forward of "
                "another one; a forward that needs no gradient belongs under torch.no_grad(), with "
                "use_reentrant=False."
            )

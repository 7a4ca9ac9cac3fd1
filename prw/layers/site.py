"""The site: one attention block whose key and value projections share one routing decision."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from prw.errors import RoutingError
from prw.layers.experts import GATE, NOISE, weights_of
from prw.layers.pool import Pool, Scope
from prw.layers.recompute import Checkpointed
from prw.layers.turn import Turn
from prw.routing import Groups, RoutingDecision, decide
from prw.routing.features import as_batch


class Pending(NamedTuple):
    """A decision waiting for the site's other projection to be called with the very same input."""

    hidden: Tensor
    version: int | None
    asker: nn.Module
    scope: Scope
    with_grad: bool
    turn: Turn


class SiteRecord(NamedTuple):
    """One attention block whose projections share a routing decision.

    Attributes:
        name: Path of the block.
        modules: Paths of its projections, key first.
        in_features: Width of what they read.
        out_features: Rows of keys and of values that experts add to; for projections that hold both, of each.
    """

    name: str
    modules: tuple[str, ...]
    in_features: int
    out_features: tuple[int, ...]


class Site:
    """Decides once for the projections of one attention block.

    The first projection that is called (K, as a rule) makes the decision and leaves it here; the second takes
    it if its input is the very same tensor, in the same thread and under the same `with` blocks, and the
    place is empty again. Otherwise it decides for itself. Nothing else is ever left on the model.

    Attributes:
        name: Path of the block in the model.
        pool: The pool it belongs to.
        adapter: Adapter name.
        projections: Path and projection of each member; the first one keeps the router vectors.
    """

    def __init__(self, name: str, pool: Pool, adapter: str) -> None:
        """Start without projections."""
        self.name = name
        self.pool = pool
        self.adapter = adapter
        self.projections: dict[str, nn.Module] = {}
        # The members again, without their paths: a block compiled once serves all blocks of its class, unless
        # it looks something up by a path, which is another one in each of them.
        self._members: list[nn.Module] = []
        self._pending: dict[int, Pending] = {}
        self._checkpointed = Checkpointed()
        pool.sites.append(self)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without the decision in flight."""
        return {**self.__dict__, "_pending": {}}

    @property
    def router(self) -> nn.Module:
        """The projection that keeps the router vectors."""
        return self._members[0]

    @property
    def acts(self) -> bool:
        """Whether the experts of any member are switched on, as its adapter and the open blocks have it."""
        on = (cast(Any, member).acts(self.adapter) for member in self._members)
        return self.pool.size > 0 and any(on)

    def note_weight_read(self, reader: nn.Module) -> None:
        """Note that a projection's weight was read, if decisions are being recorded."""
        if self.pool.recorder is not None:
            self.pool.weights_read.add(id(reader))

    @property
    def read_past(self) -> list[str]:
        """Paths of the projections whose weights were read in this recording, and which nobody called."""
        read, called = self.pool.weights_read, self.pool.called
        return [path for path, one in self.projections.items() if id(one) in read and id(one) not in called]

    def add(self, path: str, projection: nn.Module) -> None:
        """Make a projection a member."""
        self.projections[path] = projection
        self._members.append(projection)

    def path_of(self, projection: nn.Module) -> str:
        """Give the path of a member."""
        return next(path for path, member in self.projections.items() if member is projection)

    def describe(self) -> SiteRecord:
        """Give the site's record."""
        layers = [cast(Any, layer) for layer in self.projections.values()]
        widths = tuple(width for layer in layers for width in layer.widths(self.adapter))
        return SiteRecord(self.name, tuple(self.projections), cast(int, self.router.in_features), widths)

    def decide(self, hidden: Tensor, asker: nn.Module, one_sample: bool = False) -> RoutingDecision | None:
        """Give the decision for an input; see `turn`."""
        turn = self.turn(hidden, asker, one_sample)
        return None if turn is None else turn.decision

    def turn(self, hidden: Tensor, asker: nn.Module, one_sample: bool = False) -> Turn | None:
        """Give the decision for an input, made now or left by the other projection with what it has read.

        Args:
            hidden: Input of the projection, of shape [batch, tokens, d] or [tokens, d].
            asker: The projection that asks.
            one_sample: Whether an input of shape [tokens, d] is known to be one sample.

        Returns:
            The decision in its turn, or None where no expert is in use.

        Raises:
            RoutingError: if whole samples are routed and the input does not tell which rows are one.
        """
        scope, compiling = self.pool.scope, torch.compiler.is_compiling()
        if not compiling and self.pool.recorder is not None and not self.pool.all_settled:
            self.pool.called.add(id(asker))
        recomputing = not compiling and torch._C._current_graph_task_id() != -1
        if recomputing:
            self._checkpointed.check(scope, self.name)
        turn = self._turn(hidden, asker, recomputing, one_sample) if self.pool.size > 0 else None
        if not recomputing and not compiling:
            made = () if turn is None else (turn.decision.weights,)
            self._checkpointed.add(scope, *made, hidden)
        return turn

    def _turn(self, hidden: Tensor, asker: nn.Module, recomputing: bool, one_sample: bool) -> Turn:
        """Take the decision that is waiting, or make one and leave it for the other projection."""
        slot = 0 if torch.compiler.is_compiling() else threading.get_ident()
        waiting = self._pending.pop(slot, None)
        if waiting is not None and self._fits(waiting, hidden, asker):
            return waiting.turn
        groups = self.groups(hidden, one_sample)
        batch = as_batch(hidden)
        routed = self._routed(batch)
        decision = self._fresh(batch, routed, groups, asker.training)
        turn = Turn(decision if groups is None else groups.to_rows(decision))
        if len(self._members) > 1:
            grad, version = torch.is_grad_enabled(), version_of(hidden)
            self._pending[slot] = Pending(hidden, version, asker, self.pool.scope, grad, turn)
        if self.pool.recorder is not None and not recomputing:
            self.pool.recorder.add(self.name, decision)
        return turn

    def groups(self, hidden: Tensor, one_sample: bool = False) -> Groups | None:
        """Give the sample of each row, where it was said; None where axis 0 is it, or tokens are routed.

        Args:
            hidden: Input of a projection.
            one_sample: Whether an input of shape [tokens, d] is known to be one sample.

        Raises:
            RoutingError: if samples are routed and axis 0 is not the sample, or what was said does not fit.
        """
        if self.pool.scope.samples is not None:
            return self.pool.scope.samples.groups(hidden, self.name)
        sizes = self.pool.batch_sizes
        traced = (
            torch.compiler.is_compiling()
        )  # where the number of axes is known, and the call's sizes are not
        if sizes is not None and not one_sample and (hidden.dim() == 2 or not traced):
            sizes.check(hidden, self.name)
        return None

    def _fits(self, waiting: Pending, hidden: Tensor, asker: nn.Module) -> bool:
        same_input = waiting.hidden is hidden and waiting.version == version_of(hidden)
        same_call = same_input and waiting.asker is not asker
        same_scope = waiting.scope.agrees(self.pool.scope)
        return same_call and same_scope and waiting.with_grad == torch.is_grad_enabled()

    def _fresh(
        self, hidden: Tensor, routed: Tensor | None, groups: Groups | None, training: bool
    ) -> RoutingDecision:
        size, settings = self.pool.size, self.pool.settings
        gates = weights_of(self.router, GATE, self.adapter, size)
        noises = weights_of(self.router, NOISE, self.adapter, size) if settings.noise else []
        return decide(hidden, gates, noises, settings, routed, training, groups)

    def _routed(self, hidden: Tensor) -> Tensor | None:
        routed = self.pool.scope.routed_on(hidden.device)
        if routed is None:
            return None
        if routed.dim() == 1:
            routed = routed.unsqueeze(0)
        if routed.shape != hidden.shape[:2]:
            raise RoutingError(
                f"route_only got a mask of shape {tuple(routed.shape)}, but site {self.name} sees "
                f"{tuple(hidden.shape[:2])} [batch, tokens]. The mask must cover exactly the tokens of every "
                "site; where sites see different tokens, call prw.project(module, hidden, routed=...) in "
                "the attention instead."
            )
        return routed


def version_of(hidden: Tensor) -> int | None:
    """Count how often a tensor was changed in place; None where torch does not keep count."""
    if torch.compiler.is_compiling() or hidden.is_inference():
        return None
    return hidden._version

"""The site: one attention block whose key and value projections share one routing decision."""

# Shape suffixes: T tokens (rows of the input), N items (tokens, or whole samples), K choices per item.

from __future__ import annotations

import threading
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from prw.errors import RoutingError
from prw.execution import recomputing
from prw.kernels import Choice, DispatchPlan, make_plan
from prw.layers.checkpointing import CheckpointedForwards
from prw.layers.experts import GATE, NOISE, is_split, weights_of
from prw.layers.pool import Pool, Scope
from prw.routing import RoutingDecision, SampleGroups, as_batch, decide


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


class CachedDecision:
    """The decision for one input, and what the site's first projection (K, as a rule) leaves for the next.

    That is the kernel, the dispatch plan, and the input as rows, cast to the experts' dtype. It fits the next
    projection if its input is the very same tensor, unchanged, under the same `with` blocks and gradient
    mode.

    Attributes:
        decision: The site's decision.
        kernel: The kernel, once a projection has chosen it, and why.
    """

    def __init__(self, decision: RoutingDecision, hidden: Tensor, caller: nn.Module, scope: Scope) -> None:
        """Keep a decision, and what it was made for."""
        self.decision = decision
        self.kernel: Choice | None = None
        self._plan: DispatchPlan | None = None
        self._rows: Tensor | None = None
        self._read: Tensor | None = None
        self._hidden, self._version = hidden, version_of(hidden)
        self._caller, self._scope, self._with_grad = caller, scope, torch.is_grad_enabled()

    def fits(self, hidden: Tensor, caller: nn.Module, scope: Scope) -> bool:
        """Return whether this is the decision for another projection's input."""
        same_input = self._hidden is hidden and self._version == version_of(hidden)
        same_mode = self._scope.agrees(scope) and self._with_grad == torch.is_grad_enabled()
        return same_input and same_mode and self._caller is not caller

    @property
    def ids_NK(self) -> Tensor:  # noqa: N802  # a shape suffix
        """Chosen experts: [batch, items] or [batch, items, k] -> [items, choices]."""
        return self.decision.choices.flatten(0, 1)

    @property
    def gates_NK(self) -> Tensor:  # noqa: N802  # a shape suffix
        """Their gates, likewise."""
        gates = self.decision.weights
        return gates.flatten(0, 1) if gates.dim() == 3 else gates.reshape(-1, 1)

    def tokens_per_item(self, rows: int) -> int:
        """Count the rows of the input that each item stands for."""
        batch, items = self.decision.expert_ids.shape[:2]
        return rows // max(batch * items, 1)

    def plan(self, kernel: str, rows: int, site: Site) -> DispatchPlan:
        """Return the dispatch plan, made once for all projections of the site.

        Args:
            kernel: Name of a kernel that has a backend.
            rows: Rows of the input.
            site: The site.
        """
        if self._plan is None:
            experts, tokens = self.decision.num_experts, self.tokens_per_item(rows)
            fixed = not any(is_split(member, site.adapter) for member in site.projections.values())
            self._plan = make_plan(kernel, self.ids_NK, experts, tokens, fixed)
        return self._plan

    def rows(self, hidden: Tensor) -> Tensor:
        """View the input as rows, [..., d_in] -> [tokens, d_in]; one copy of a strided one."""
        if self._rows is None:
            self._rows = hidden.reshape(-1, hidden.shape[-1])
        return self._rows

    def read(self, hidden_TI: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the input without its graph in the experts' dtype, cast once for all projections."""
        if self._read is None or self._read.dtype != dtype:
            self._read = hidden_TI.detach().to(dtype)
        return self._read


class Site:
    """Decides once for the projections of one attention block.

    The first projection that is called (K, as a rule) makes the decision and leaves it here; the next takes
    it, in the same thread, if it fits, and the place is empty again. Otherwise it decides for itself. Nothing
    else is ever left on the model.

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
        self._cached: dict[int, CachedDecision] = {}  # by thread
        self._checkpointed = CheckpointedForwards()
        pool.sites.append(self)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without the decision in flight."""
        return {**self.__dict__, "_cached": {}}

    @property
    def router(self) -> nn.Module:
        """The projection that keeps the router vectors."""
        return self._members[0]

    @property
    def acts(self) -> bool:
        """Whether the experts of any member are switched on, by its adapter and the open blocks."""
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
        """Return the path of a member."""
        return next(path for path, member in self.projections.items() if member is projection)

    def describe(self) -> SiteRecord:
        """Return the site's record."""
        layers = [cast(Any, layer) for layer in self.projections.values()]
        widths = tuple(width for layer in layers for width in layer.widths(self.adapter))
        return SiteRecord(self.name, tuple(self.projections), cast(int, self.router.in_features), widths)

    def decide(self, hidden: Tensor, caller: nn.Module, one_sample: bool = False) -> CachedDecision | None:
        """Return the decision for an input: the one that another projection has left, or a new one.

        Args:
            hidden: Input of the projection, of shape [batch, tokens, d] or [tokens, d].
            caller: The projection.
            one_sample: Whether an input of shape [tokens, d] is known to be one sample.

        Returns:
            The decision, or None where no expert is in use.

        Raises:
            RoutingError: if whole samples are routed and the input does not tell which rows are one.
        """
        scope, compiling, again = self.pool.scope, torch.compiler.is_compiling(), recomputing()
        if not compiling and self.pool.recorder is not None and not self.pool.all_settled:
            self.pool.called.add(id(caller))
        if again:
            self._checkpointed.check(scope, self.name)
        decided = self._taken_or_made(hidden, caller, one_sample) if self.pool.size > 0 else None
        if not again and not compiling:
            made = () if decided is None else (decided.decision.weights,)
            self._checkpointed.add(scope, *made, hidden)
        return decided

    def _taken_or_made(self, hidden: Tensor, caller: nn.Module, one_sample: bool) -> CachedDecision:
        """Take the cached decision if it fits, or make one and leave it for the next projection."""
        thread = 0 if torch.compiler.is_compiling() else threading.get_ident()
        cached = self._cached.pop(thread, None)
        if cached is not None and cached.fits(hidden, caller, self.pool.scope):
            return cached
        groups = self.groups(hidden, one_sample)
        decision = self._made(as_batch(hidden), groups, caller.training)
        by_row = decision if groups is None else groups.to_rows(decision)
        made = CachedDecision(by_row, hidden, caller, self.pool.scope)
        if len(self._members) > 1:
            self._cached[thread] = made
        if self.pool.recorder is not None and not recomputing():
            self.pool.recorder.add(self.name, decision)
        return made

    def _made(self, hidden: Tensor, groups: SampleGroups | None, training: bool) -> RoutingDecision:
        """Make a decision for an input of shape [batch, tokens, d]."""
        size, settings = self.pool.size, self.pool.settings
        router = weights_of(self.router, GATE, self.adapter, size)
        noise = weights_of(self.router, NOISE, self.adapter, size) if settings.noise else []
        return decide(hidden, router, noise, settings, self._routed(hidden), training, groups)

    def groups(self, hidden: Tensor, one_sample: bool = False) -> SampleGroups | None:
        """Return the sample of each row where it was given; None if axis 0 is the sample.

        Args:
            hidden: Input of a projection.
            one_sample: Whether an input of shape [tokens, d] is known to be one sample.

        Raises:
            RoutingError: if samples are routed and axis 0 is not the sample, or what was said does not fit.
        """
        if self.pool.scope.samples is not None:
            return self.pool.scope.samples.groups(hidden, self.name)
        sizes = self.pool.batch_sizes
        # Where a graph is compiled the number of axes is known, and the call's sizes are not.
        traced = torch.compiler.is_compiling()
        if sizes is not None and not one_sample and (hidden.dim() == 2 or not traced):
            sizes.check(hidden, self.name)
        return None

    def _routed(self, hidden: Tensor) -> Tensor | None:
        """Return which tokens are routed, bool of shape [batch, tokens]; None means all."""
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

"""A projection with experts: the experts' part of its output, given a decision of its site."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from prw.kernels import all_at_once, onto, opaquely, reference
from prw.layers.experts import is_split
from prw.layers.reading import chosen, downs_of, read, stacks_of, ups_of
from prw.layers.rows import WHOLE, Part, Rows, add_rows
from prw.layers.site import Site
from prw.layers.turn import Reading, Turn, graphed, per_token, traced
from prw.precision import experts_dtype

KNOWN = ("bitsandbytes.", "transformers.pytorch_utils")
"""Where projections come from that are no plain Linear and give a tensor that nothing else holds."""


class RoutedProjection(nn.Module):
    """Wraps a projection and adds the chosen expert's output; the base is never routed (equation 4).

    The experts' part is added in activation space, so the base may be quantised or wrapped.

    Attributes:
        base_layer: What was there before.
        in_features: Width of the input.
        out_features: Width of the output.
        sites: Adapter name to the site this projection belongs to.
        scales: Adapter name to the LoRA scale of its experts here.
        parts: Adapter name to the parts of the output that experts add to.
    """

    def __init__(self, base_layer: nn.Module, in_features: int, out_features: int) -> None:
        """Wrap a projection; it has no experts yet."""
        super().__init__()
        self.base_layer = base_layer
        self.in_features = in_features
        self.out_features = out_features
        self.sites: dict[str, Site] = {}
        self.scales: dict[str, float] = {}
        self.parts: dict[str, tuple[Part, ...]] = {}
        self.training = base_layer.training  # noise is drawn in training only, and the base may be evaluating

    def acts(self, adapter: str) -> bool:
        """Tell whether an adapter's experts are switched on here."""
        return adapter in self.sites

    def parts_of(self, adapter: str) -> tuple[Part, ...]:
        """List the parts of the output that an adapter's experts add to."""
        return self.parts.get(adapter, WHOLE)

    def widths(self, adapter: str) -> tuple[int, ...]:
        """Tell how many rows each part has."""
        return tuple(
            self.out_features if part.rows is None else part.rows.size for part in self.parts_of(adapter)
        )

    def with_experts(self, output: Tensor, hidden: Tensor, adapter: str, strength: float = 1.0) -> Tensor:
        """Add an adapter's experts to what the base gave; the columns that are no part keep their bits.

        Args:
            output: The base's output, of shape [..., d_out]. It is added to in place where nothing else can
                have kept it.
            hidden: Input, of shape [batch, tokens, d_in] or [tokens, d_in].
            adapter: Adapter name.
            strength: Factor on the experts' output.
        """
        turn = self.sites[adapter].turn(hidden, self)
        if turn is None:
            return output
        parts, reading = self.parts_of(adapter), self._reading(turn, hidden, adapter)
        if reading.work is None:
            plain = [self._plainly(turn, hidden, adapter, part) for part in parts]
            plain = plain if strength == 1.0 else [delta * strength for delta in plain]
            return added(output, [(part.rows, delta) for part, delta in zip(parts, plain, strict=True)])
        total = writable(output, self.base_layer, hidden)
        weights, scale = turn.items_first(turn.decision.weights), self.scales[adapter] * strength
        for part, low in zip(parts, reading.lows, strict=True):
            ups = ups_of(self, part, adapter, turn.decision.num_experts)
            total = onto(total, low, weights, ups, scale, reading.work, part.rows)
        return total.view(output.shape)

    def delta(self, turn: Turn, hidden: Tensor, adapter: str, part: Part) -> Tensor:
        """Compute weight * scale * B_e A_e h for every token, alone.

        Args:
            turn: The site's decision for the input, in its turn.
            hidden: Input, of shape [batch, tokens, d_in] or [tokens, d_in].
            adapter: Adapter name.
            part: Which of the adapter's parts.

        Returns:
            Of shape [..., rows of the part] in the experts' dtype.
        """
        reading = self._reading(turn, hidden, adapter)
        if reading.work is None:
            return self._plainly(turn, hidden, adapter, part)
        turn.waiting[self] = reading  # for the next part
        low = reading.lows[self.parts_of(adapter).index(part)]
        ups = ups_of(self, part, adapter, turn.decision.num_experts)
        output = low.new_zeros(*hidden.shape[:-1], ups[0].shape[0])
        weights = turn.items_first(turn.decision.weights)
        return onto(output, low, weights, ups, self.scales[adapter], reading.work)

    def _reading(self, turn: Turn, hidden: Tensor, adapter: str) -> Reading:
        """Read the input into rank space, for the site's other projections too if they get the same rows."""
        if self in turn.waiting:
            return turn.waiting.pop(self)
        pool, rows = self.sites[adapter].pool, hidden.reshape(-1, hidden.shape[-1])
        stacks = stacks_of(self, adapter, turn.decision.num_experts)
        choice = chosen(turn, pool.kernel, stacks[0], rows)
        if traced() or choice.name == "reference":
            return Reading(None, ())
        members = list(self.sites[adapter].projections.values())
        # A replica of nn.DataParallel is none of the members, and reads for itself.
        others = [layer for layer in members if layer is not self] if self in members else []
        if pool.settings.dropout and self.training:
            rows, others = F.dropout(rows, pool.settings.dropout), []  # each projection drops others
        return read(turn, rows, self, stacks, others, adapter, choice.name)

    def _plainly(self, turn: Turn, hidden: Tensor, adapter: str, part: Part) -> Tensor:
        """Compute a part's delta by plain operations, of shape [..., rows of the part]."""
        decision, settings = turn.decision, self.sites[adapter].pool.settings
        rows, size = hidden.reshape(-1, hidden.shape[-1]), decision.num_experts
        if settings.dropout and self.training:
            rows = F.dropout(rows, settings.dropout)  # by torch's generator, which checkpointing replays
        downs, ups = downs_of(self, part, adapter, size), ups_of(self, part, adapter, size)
        dtype = experts_dtype(downs[0], rows)
        name, scale = "reference" if turn.choice is None else turn.choice.name, self.scales[adapter]
        if name != "reference" and graphed():
            ids, weights = turn.items_first(decision.expert_ids), turn.items_first(decision.weights)
            tokens, fixed = turn.tokens_per_item(rows.shape[0]), not is_split(self, adapter)
            delta = opaquely(rows, downs, ups, ids, weights, scale, name, tokens, fixed)
        else:
            ids, weights = (
                per_token(of_items, rows.shape[0]) for of_items in (decision.expert_ids, decision.weights)
            )
            downs, ups = ([matrix.to(dtype) for matrix in matrices] for matrices in (downs, ups))
            delta = (reference if name == "reference" else all_at_once)(rows, downs, ups, ids, weights, scale)
        return delta.reshape(*hidden.shape[:-1], delta.shape[-1])


def added(output: Tensor, deltas: Sequence[tuple[Rows | None, Tensor]]) -> Tensor:
    """Add deltas to an output or to some of its columns, into a new one."""
    rows, delta = deltas[0]
    if rows is None:
        return (output + delta).to(output.dtype)
    return add_rows(output, [(rows, delta) for rows, delta in deltas if rows is not None])


def writable(output: Tensor, base: nn.Module, hidden: Tensor) -> Tensor:
    """Give what a projection made, or a copy, to be added to in place.

    A plain projection, also a quantised one, makes a new tensor that nothing else has and that its own
    gradient does not need. Torch may show it as a view of one with other axes; then that one is given, for a
    view would be copied in backward.

    Args:
        output: What the projection made.
        base: The projection.
        hidden: What it was made of.

    Returns:
        All of the output's numbers in their order, contiguous.
    """
    whole = output._base if shown_otherwise(output) and output._base is not None else output
    same = whole.numel() == output.numel() and whole.is_contiguous() and output.is_contiguous()
    held = (whole.requires_grad and whole.is_leaf) or whole.data_ptr() == hidden.data_ptr()
    if same and not held and not whole._is_view() and makes_new(base):
        return whole
    return output.clone(memory_format=torch.contiguous_format)


def shown_otherwise(output: Tensor) -> bool:
    """Tell whether an output is a view, and its gradient goes through what it is a view of.

    That of a quantised projection does not: its autograd function made the view, without a graph.
    """
    if not output._is_view():
        return False
    graph, whole = output.grad_fn, output._base
    if graph is None or whole is None:
        return graph is None
    return type(graph).__name__ == "ViewBackward0" and graph.next_functions[0][0] is whole.grad_fn


def makes_new(base: nn.Module) -> bool:
    """Tell whether a projection is known to give new tensors, and has no hooks that may have kept one."""
    if watched(base) or "forward" in base.__dict__:
        return False
    return type(base).forward is nn.Linear.forward or type(base).__module__.startswith(KNOWN)


def watched(base: nn.Module) -> bool:
    """Tell whether hooks see a module's output, or its gradient: that one through a view of the output."""
    mine = base._forward_hooks or base._backward_hooks or base._backward_pre_hooks
    forward = torch_module._global_forward_hooks
    backward = torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks
    return bool(mine or forward or backward)

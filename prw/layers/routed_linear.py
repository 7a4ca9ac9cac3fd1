"""The routed linear layer: a projection with experts, from its input to its output.

    input -> decision -> dispatch plan -> shrink -> gate -> expand -> output

    hidden_TI            [tokens, d_in]             what the projection reads, batch and tokens in one axis
    ids_NK, gates_NK     [items, choices per item]  the site's decision; K leaves it for V
    plan                                            rows in the order of their experts; K leaves it for V
    low_CR               [choices, rank]            shrink: hidden times A of each choice's expert
    gates * scale        [choices, 1]               the factor on the output of each choice's expert
    output[..., slice]   [tokens, d_out of slice]   expand: plus gate * scale * low times B, in place

An item is a token or a whole sample; choices are all items' tokens times the experts that an item goes to.
"""

# Shape suffixes: T tokens, N items, K choices per item, C choices in all (T * K), I features in, R rank.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from prw.execution import graphed, traced
from prw.kernels import (
    Case,
    DispatchPlan,
    OutputSlice,
    add_to_slices,
    choose,
    custom_op,
    expand,
    reference,
    shrink,
    traceable,
)
from prw.layers.experts import DOWN, UP, is_split, weights_of
from prw.layers.site import CachedDecision, Site
from prw.precision import experts_dtype
from prw.routing import per_token

WHOLE: Mapping[str, OutputSlice | None] = {"": None}
"""The output slices of a projection that is keys or values and nothing else: one, of all columns."""

KNOWN = ("bitsandbytes.", "transformers.pytorch_utils")
"""Where projections come from that are no plain Linear and give a tensor that nothing else holds."""


class RoutedLinear(nn.Module):
    """Wraps a projection and adds the chosen expert's output; the base is never routed (equation 4).

    The experts' part is added in activation space, so the base may be quantised or wrapped.

    Attributes:
        base_layer: What was there before.
        in_features: Width of the input.
        out_features: Width of the output.
        sites: Adapter name to the site this projection belongs to.
        scales: Adapter name to the LoRA scale of its experts here.
        slices: Adapter name to the output slices that its experts add to, by letter: "k" and "v" in a fused
            projection, "" for all of the output.
    """

    def __init__(self, base_layer: nn.Module, in_features: int, out_features: int) -> None:
        """Wrap a projection; it has no experts yet."""
        super().__init__()
        self.base_layer = base_layer
        self.in_features = in_features
        self.out_features = out_features
        self.sites: dict[str, Site] = {}
        self.scales: dict[str, float] = {}
        self.slices: dict[str, Mapping[str, OutputSlice | None]] = {}
        self.training = base_layer.training  # noise is added in training only, and the base may be evaluating

    def acts(self, adapter: str) -> bool:
        """Return whether an adapter's experts are switched on here."""
        return adapter in self.sites

    def slices_of(self, adapter: str) -> Mapping[str, OutputSlice | None]:
        """Return the output slices that an adapter's experts add to, by letter."""
        return self.slices.get(adapter, WHOLE)

    def widths(self, adapter: str) -> tuple[int, ...]:
        """Return how many columns each slice has."""
        slices = self.slices_of(adapter).values()
        return tuple(self.out_features if one is None else one.size for one in slices)

    def add_experts(self, output: Tensor, hidden: Tensor, adapter: str, strength: float = 1.0) -> Tensor:
        """Add an adapter's experts to the base's output; columns outside of all slices keep their bits.

        Args:
            output: The base's output, of shape [..., d_out]. It is added to in place where nothing else can
                have kept it.
            hidden: Input, of shape [batch, tokens, d_in] or [tokens, d_in].
            adapter: Adapter name.
            strength: Factor on the experts' output.
        """
        cached = self.sites[adapter].decide(hidden, self)
        if cached is None:
            return output
        slices, experts = self.slices_of(adapter), cached.decision.num_experts
        stacks_RI = [weights_of(self, DOWN + letter, adapter, experts) for letter in slices]
        kernel = self._kernel(cached, hidden, adapter, stacks_RI[0])
        if traced() or kernel == "reference":
            deltas = self._plain(cached, hidden, adapter, kernel, slices, strength)
            return added(output, [(slices[letter], delta) for letter, delta in deltas.items()])
        plan, lows = self._shrunk(cached, hidden, adapter, kernel, stacks_RI)  # one [choices, rank] per slice
        total, scale = writable(output, self.base_layer, hidden), self.scales[adapter] * strength
        for letter, low_CR in zip(slices, lows, strict=True):
            ups_OR = weights_of(self, UP + letter, adapter, experts)
            total = expand(total, low_CR, cached.gates_NK, ups_OR, scale, plan, slices[letter])
        return total.view(output.shape)

    def expert_outputs(
        self,
        hidden: Tensor,
        adapter: str,
        letters: Sequence[str],
        strength: float = 1.0,
        one_sample: bool = False,
    ) -> dict[str, Tensor]:
        """Compute what an adapter's experts add to some slices, alone: gate * scale * B_e A_e x.

        Args:
            hidden: Input, of shape [batch, tokens, d_in] or [tokens, d_in].
            adapter: Adapter name.
            letters: Which slices.
            strength: Factor on the experts' output.
            one_sample: Whether an input of shape [tokens, d_in] is known to be one sample.

        Returns:
            Letter to the slice's part, of shape [..., columns of the slice]; empty where no expert is in use.
        """
        cached = self.sites[adapter].decide(hidden, self, one_sample)
        if cached is None:
            return {}
        letters, experts = [x for x in self.slices_of(adapter) if x in letters], cached.decision.num_experts
        stacks_RI = [weights_of(self, DOWN + letter, adapter, experts) for letter in letters]
        kernel = self._kernel(cached, hidden, adapter, stacks_RI[0])
        if traced() or kernel == "reference":
            return self._plain(cached, hidden, adapter, kernel, letters, strength)
        plan, lows = self._shrunk(cached, hidden, adapter, kernel, stacks_RI)
        scale, found = self.scales[adapter] * strength, {}
        for letter, low_CR in zip(letters, lows, strict=True):
            ups_OR = weights_of(self, UP + letter, adapter, experts)
            zeros = low_CR.new_zeros(*hidden.shape[:-1], ups_OR[0].shape[0])  # [..., columns of the slice]
            found[letter] = expand(zeros, low_CR, cached.gates_NK, ups_OR, scale, plan)
        return found

    def _kernel(self, cached: CachedDecision, hidden: Tensor, adapter: str, downs: Sequence[Tensor]) -> str:
        """Choose the kernel, once for all projections of the site, by what the first one reads."""
        if cached.kernel is None:
            tokens, top_k = hidden.shape[:-1].numel(), cached.decision.choices.shape[-1]
            case = case_of(downs, experts_dtype(downs[0], hidden), top_k, cached.tokens_per_item(tokens))
            cached.kernel = choose(case, self.sites[adapter].pool.kernel)
        return cached.kernel.name

    def _shrunk(
        self,
        cached: CachedDecision,
        hidden: Tensor,
        adapter: str,
        kernel: str,
        stacks_RI: Sequence[Sequence[Tensor]],
    ) -> tuple[DispatchPlan, tuple[Tensor, ...]]:
        """Shrink the input, [..., d_in] -> one [choices, rank] per stack; with the dispatch plan."""
        site, hidden_TI = self.sites[adapter], cached.rows(hidden)  # [batch, tokens, d_in] -> [tokens, d_in]
        dtype = experts_dtype(stacks_RI[0][0], hidden_TI)
        if site.pool.settings.dropout and self.training:  # each projection drops for itself
            hidden_TI = F.dropout(hidden_TI, site.pool.settings.dropout)
            read_TI = hidden_TI.detach().to(dtype)
        else:
            read_TI = cached.read(hidden_TI, dtype)
        plan = cached.plan(kernel, hidden_TI.shape[0], site)
        return plan, shrink(hidden_TI, stacks_RI, plan, read_TI)

    def _plain(
        self,
        cached: CachedDecision,
        hidden: Tensor,
        adapter: str,
        kernel: str,
        letters: Iterable[str],
        strength: float,
    ) -> dict[str, Tensor]:
        """Compute the experts' part by operations that can be traced: [..., d_in] -> [..., columns] each."""
        decision, scale, found = cached.decision, self.scales[adapter], {}
        dropout = self.sites[adapter].pool.settings.dropout
        for letter in letters:
            hidden_TI = hidden.reshape(-1, hidden.shape[-1])  # [batch, tokens, d_in] -> [tokens, d_in]
            if dropout and self.training:
                hidden_TI = F.dropout(hidden_TI, dropout)  # by torch's generator, which checkpointing replays
            downs, ups = (
                weights_of(self, kind + letter, adapter, decision.num_experts) for kind in (DOWN, UP)
            )
            rows = hidden_TI.shape[0]
            if kernel != "reference" and graphed():
                tokens, fixed = cached.tokens_per_item(rows), not is_split(self, adapter)
                delta = custom_op(
                    hidden_TI, downs, ups, cached.ids_NK, cached.gates_NK, scale, kernel, tokens, fixed
                )
            else:
                ids, gates = per_token(decision.expert_ids, rows), per_token(decision.weights, rows)
                dtype = experts_dtype(downs[0], hidden_TI)
                downs, ups = ([matrix.to(dtype) for matrix in matrices] for matrices in (downs, ups))
                compute = reference if kernel == "reference" else traceable
                delta = compute(hidden_TI, downs, ups, ids, gates, scale)
            delta = delta.reshape(*hidden.shape[:-1], delta.shape[-1])  # [tokens, columns] -> [..., columns]
            found[letter] = delta if strength == 1.0 else delta * strength
        return found


def case_of(downs: Sequence[Tensor], dtype: torch.dtype, top_k: int, tokens_per_item: int) -> Case:
    """Describe what a kernel is chosen for, with the dtype that it computes in."""
    first = downs[0]
    # On a host the ranks do not count; looking at all of them would cost more than choosing.
    rank = first.shape[0] if first.is_cpu else max(down.shape[0] for down in downs)
    return Case(first.device, dtype, len(downs), rank, top_k, tokens_per_item, wide=first.shape[1])


def describe_kernel(site: Site) -> str:
    """Describe which kernel computes a site's experts, and why.

    Autocast, and whether gradients are wanted, may change it.
    """
    pool, layer = site.pool, site.router
    if not pool.experts:
        return f"{pool.kernel}, once there is an expert"
    letter = next(iter(layer.slices_of(site.adapter)))  # type: ignore[operator]
    downs = weights_of(layer, DOWN + letter, site.adapter, len(pool.experts))
    # All that counts is whether an item has more than one token.
    tokens = 1 if pool.settings.granularity == "token" else 2
    # The base reads inputs of its own dtype; a quantised one says nothing about them.
    floating = (one for one in layer.base_layer.parameters() if one.is_floating_point())  # type: ignore[union-attr]
    dtype = experts_dtype(downs[0], next(floating, downs[0]))
    choice = choose(case_of(downs, dtype, min(pool.settings.top_k, len(downs)), tokens), pool.kernel)
    why = choice.why if pool.kernel == "auto" else f"{choice.why} by {pool.kernel_from}"
    return f"{choice.name} ({why})"


def added(output: Tensor, deltas: Sequence[tuple[OutputSlice | None, Tensor]]) -> Tensor:
    """Add deltas to an output or to some of its slices, into a new one."""
    output_slice, delta = deltas[0]
    if output_slice is None:
        return (output + delta).to(output.dtype)
    return add_to_slices(output, [(one, delta) for one, delta in deltas if one is not None])


def writable(output: Tensor, base: nn.Module, hidden: Tensor) -> Tensor:
    """Return a projection's output, or a copy of it, that can be added to in place.

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
    """Return whether an output is a view, and its gradient goes through what it is a view of.

    That of a quantised projection does not: its autograd function made the view, without a graph.
    """
    if not output._is_view():
        return False
    graph, whole = output.grad_fn, output._base
    if graph is None or whole is None:
        return graph is None
    return type(graph).__name__ == "ViewBackward0" and graph.next_functions[0][0] is whole.grad_fn


def makes_new(base: nn.Module) -> bool:
    """Return whether a projection is known to give new tensors, and has no hooks that may have kept one."""
    if watched(base) or "forward" in base.__dict__:
        return False
    return type(base).forward is nn.Linear.forward or type(base).__module__.startswith(KNOWN)


def watched(base: nn.Module) -> bool:
    """Return whether hooks see a module's output, or its gradient: that one through a view of the output."""
    mine = base._forward_hooks or base._backward_hooks or base._backward_pre_hooks
    forward = torch_module._global_forward_hooks
    backward = torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks
    return bool(mine or forward or backward)

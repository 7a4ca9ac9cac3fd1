"""Shrink and expand with their gradients: all in rank space, and of weights only for those that train.

With h = A_e x in rank space, gate g, scale s and G the gradient of the output, u = B_e^T G gives the gate's
gradient s <u, h>, the input's A_e^T (s g u), and for an expert that trains dA = (s g u) x^T and
dB = G (s g h)^T.
No expert's full-width output is saved, and frozen experts cost no weight gradients.
"""

# Shape suffixes: T tokens, N items, K choices per item, C choices in all (T * K), I features in, O out,
# R rank, 1 an axis of length one.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prw.kernels.dispatch_plan import DispatchPlan
from prw.kernels.output_slice import OutputSlice
from prw.precision import without_autocast


def shrink(
    hidden_TI: Tensor, stacks_RI: Sequence[Sequence[Tensor]], plan: DispatchPlan, read_TI: Tensor
) -> tuple[Tensor, ...]:
    """Multiply every row with A of its experts: the input in rank space.

    Args:
        hidden_TI: Input, of shape [tokens, d_in].
        stacks_RI: For each output slice of the projection, A of every expert, each of shape [rank, d_in].
        plan: The dispatch plan.
        read_TI: The input without its graph, in the dtype of the experts' arithmetic.

    Returns:
        For each slice, of shape [choices, largest rank], in that dtype.
    """
    downs_RI = [down_RI for stack_RI in stacks_RI for down_RI in stack_RI]
    lows: tuple[Tensor, ...] = Shrink.apply(  # type: ignore[no-untyped-call]
        plan, len(stacks_RI[0]), hidden_TI, read_TI, *downs_RI
    )
    return lows


def expand(
    output: Tensor,
    low_CR: Tensor,
    gates_NK: Tensor,
    ups_OR: Sequence[Tensor],
    scale: float,
    plan: DispatchPlan,
    output_slice: OutputSlice | None = None,
) -> Tensor:
    """Add gate * scale * B_e h to an output, in place.

    Args:
        output: Of shape [..., d_out], contiguous; nothing that autograd has saved.
        low_CR: h, the input in rank space, as `shrink` gives it.
        gates_NK: Gate of each choice, of shape [items, choices].
        ups_OR: B of every expert, each of shape [columns of the slice, rank].
        scale: LoRA scale.
        plan: The dispatch plan.
        output_slice: The columns that are added to; None means all.
    """
    added: Tensor = Expand.apply(  # type: ignore[no-untyped-call]
        plan, scale, output_slice, output, low_CR, gates_NK, *ups_OR
    )
    return added


class Shrink(torch.autograd.Function):
    """Into rank space, for all slices of a projection."""

    @staticmethod
    def forward(
        ctx: Any, plan: DispatchPlan, experts: int, hidden_TI: Tensor, read_TI: Tensor, *downs_RI: Tensor
    ) -> tuple[Tensor, ...]:
        """Return one [choices, rank] for each list of A."""
        ctx.plan, ctx.experts, ctx.hidden_dtype = plan, experts, hidden_TI.dtype
        # What was read is enough for backward; of two the narrower is kept.
        narrow_TI = read_TI if read_TI.dtype.itemsize < hidden_TI.dtype.itemsize else hidden_TI
        ctx.save_for_backward(narrow_TI, *downs_RI)
        ctx.set_materialize_grads(False)
        with without_autocast(hidden_TI.device):
            return tuple(plan.shrink(read_TI, stacks_of(downs_RI, experts)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_CR: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input and of each A that trains."""
        hidden_TI, *downs_RI = ctx.saved_tensors
        of_hidden_wanted, _, *of_downs_wanted = ctx.needs_input_grad[2:]
        with without_autocast(hidden_TI.device):
            of_hidden, of_downs = shrink_backward(
                ctx.plan,
                grads_CR,
                hidden_TI,
                stacks_of(downs_RI, ctx.experts),
                of_hidden_wanted,
                of_downs_wanted,
            )
        of_hidden = None if of_hidden is None else of_hidden.to(ctx.hidden_dtype)
        return None, None, of_hidden, None, *of_downs


class Expand(torch.autograd.Function):
    """Out of rank space, added in place to a slice of an output that is there."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: DispatchPlan,
        scale: float,
        output_slice: OutputSlice | None,
        output: Tensor,
        low_CR: Tensor,
        gates_NK: Tensor,
        *ups_OR: Tensor,
    ) -> Tensor:
        """Add to the output, in place, and give it."""
        with without_autocast(output.device):
            gates_C1 = scaled_gates(plan, gates_NK, scale, low_CR.dtype)
            target = output.view(-1, output.shape[-1])  # [..., d_out] -> [tokens, d_out]
            target = target if output_slice is None else output_slice.view(target)
            plan.add_to(low_CR * gates_C1, transposed(ups_OR), target)  # [choices, rank] -> [tokens, d_out]
        ctx.plan, ctx.scale, ctx.output_slice, ctx.gate_dtype = plan, scale, output_slice, gates_NK.dtype
        ctx.save_for_backward(low_CR, gates_C1, *ups_OR)
        ctx.mark_dirty(output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the output, the rows in rank space, the gates and each B that trains."""
        low_CR, gates_C1, *ups_OR = ctx.saved_tensors
        grad_TO = grad.reshape(-1, grad.shape[-1])
        if ctx.output_slice is not None:
            grad_TO = ctx.output_slice.view(grad_TO).flatten(1)  # -> [tokens, columns of the slice]
        with without_autocast(grad.device):
            of_low, of_gates, of_ups = expand_backward(
                ctx.plan,
                grad_TO.to(low_CR.dtype),
                low_CR,
                gates_C1,
                ups_OR,
                ctx.scale,
                ctx.needs_input_grad[4:],
            )
        of_gates = None if of_gates is None else of_gates.to(ctx.gate_dtype)
        return None, None, None, grad, of_low, of_gates, *of_ups


def shrink_backward(
    plan: DispatchPlan,
    grads_CR: Sequence[Tensor | None],
    hidden_TI: Tensor,
    stacks_RI: Sequence[Sequence[Tensor]],
    of_hidden_wanted: bool,
    of_downs_wanted: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Compute the gradients of the input, A_e^T (s g u), and of the A that train, (s g u) x^T.

    Args:
        plan: The dispatch plan.
        grads_CR: s g u for each slice; None where no gradient came back.
        hidden_TI: x, what was read.
        stacks_RI: For each slice, A of every expert.
        of_hidden_wanted: Whether the gradient of x is wanted.
        of_downs_wanted: Of which A; zeros where nobody chose the expert, as DDP waits for them.
    """
    used = [(grad, stack) for grad, stack in zip(grads_CR, stacks_RI, strict=True) if grad is not None]
    of_hidden_TI: Tensor | None = None
    if of_hidden_wanted and used:
        # [choices, rank] of each slice -> [tokens, d_in], summed
        of_hidden_TI = plan.expand([grad for grad, _ in used], [stack for _, stack in used])
    # Cast only where it is read: an input of fewer bits is kept as it is.
    read_TI = hidden_TI.to(used[0][0].dtype) if used and any(of_downs_wanted) else hidden_TI
    of_downs: list[Tensor | None] = []
    wanted = iter(of_downs_wanted)
    for grad_CR, stack_RI in zip(grads_CR, stacks_RI, strict=True):
        for expert, down_RI in enumerate(stack_RI):
            of_down_RI: Tensor | None = None
            if next(wanted) and grad_CR is not None:
                of_down_RI = plan.weight_gradient(grad_CR, read_TI, expert, down_RI.shape[0])
                of_down_RI = of_down_RI.to(down_RI.dtype)
            of_downs.append(of_down_RI)
    return of_hidden_TI, of_downs


def expand_backward(
    plan: DispatchPlan,
    grad_TO: Tensor,
    low_CR: Tensor,
    gates_C1: Tensor,
    ups_OR: Sequence[Tensor],
    scale: float,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """Compute the gradients of h, s g u, of the gates, s <u, h>, and of the B that train, G (s g h)^T.

    Args:
        plan: The dispatch plan.
        grad_TO: G, the gradient of what was added to.
        low_CR: h, the input in rank space.
        gates_C1: s g, the scaled gate of each choice.
        ups_OR: B of every expert.
        scale: s, the LoRA scale.
        wanted: Whether the gradient of h is wanted, of the gates, and of each B.
    """
    of_low_wanted, of_gates_wanted, *of_ups_wanted = wanted
    # One narrow tensor at a time: several would be the peak of a step's memory.
    of_ups: list[Tensor | None] = [None] * len(ups_OR)
    if any(of_ups_wanted):
        scaled_CR = low_CR * gates_C1
        for expert, up_OR in enumerate(ups_OR):
            if of_ups_wanted[expert]:
                of_up_RO = plan.weight_gradient(scaled_CR, grad_TO, expert, up_OR.shape[1])
                of_ups[expert] = of_up_RO.mT.to(up_OR.dtype)
        del scaled_CR
    if not of_low_wanted and not of_gates_wanted:
        return None, None, of_ups
    (back_CR,) = plan.shrink(grad_TO, [transposed(ups_OR)])  # u = B_e^T G: [tokens, d_out] -> [choices, rank]
    # <u, h>: [choices, rank] -> [choices] -> [items, choices per item]
    of_gates_NK = plan.per_item((back_CR * low_CR).sum(-1)) * scale if of_gates_wanted else None
    return back_CR.mul_(gates_C1) if of_low_wanted else None, of_gates_NK, of_ups


def scaled_gates(plan: DispatchPlan, gates_NK: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Compute scale times gate for each choice: [items, choices per item] -> [choices, 1]."""
    return (plan.per_choice(gates_NK) * scale).to(dtype).unsqueeze(-1)


def stacks_of(weights: Sequence[Tensor], experts: int) -> list[Sequence[Tensor]]:
    """Cut a flat list into lists of one matrix per expert."""
    return [weights[start : start + experts] for start in range(0, len(weights), experts)]


def transposed(ups_OR: Sequence[Tensor]) -> list[Tensor]:
    """Transpose every B, to views of shape [rank, d_out]."""
    return [up_OR.mT for up_OR in ups_OR]

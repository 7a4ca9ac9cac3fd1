"""Gradients of the routed projection: all in rank space, and of weights only for those that train.

With h = A_e x in rank space, gate g, scale s and G the gradient of the output, u = B_e^T G gives the gate's
gradient s <u, h>, the input's A_e^T (s g u), and for an expert that trains dA = (s g u) x^T and
dB = G (s g h)^T.
No expert's full-width output is saved, and frozen experts cost no weight gradients.
"""

# Shape suffixes: T tokens, N items, K choices per item, C choices in all, I features in, O out, R rank.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prw.kernels.work import Columns, Work, part_of, stacks, turned
from prw.precision import without_autocast


class Shrink(torch.autograd.Function):
    """Into rank space, for all projections that read the same input."""

    @staticmethod
    def forward(
        ctx: Any, work: Work, dtype: torch.dtype, experts: int, hidden_TI: Tensor, *downs_RI: Tensor
    ) -> tuple[Tensor, ...]:
        """Give one [choices, rank] for each list of A."""
        ctx.work, ctx.dtype, ctx.experts, ctx.hidden_dtype = work, dtype, experts, hidden_TI.dtype
        read_TI = hidden_TI.to(dtype)
        # What is read is enough for backward; of two the narrower is kept.
        narrow = read_TI if read_TI.dtype.itemsize < hidden_TI.dtype.itemsize else hidden_TI
        ctx.save_for_backward(narrow, *downs_RI)
        ctx.set_materialize_grads(False)
        with without_autocast(hidden_TI.device):
            return tuple(work.shrink(read_TI, stacks(downs_RI, experts)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_CR: Tensor | None) -> tuple[Tensor | None, ...]:
        """Give the gradients of the input and of each A that trains."""
        hidden_TI, *downs_RI = ctx.saved_tensors
        found = list(zip(grads_CR, stacks(downs_RI, ctx.experts), strict=True))
        used = [(grad, stack) for grad, stack in found if grad is not None]
        needed = ctx.needs_input_grad[3:]
        of_hidden: Tensor | None = None
        of_downs: list[Tensor | None] = [None] * len(downs_RI)
        with without_autocast(hidden_TI.device):
            if needed[0] and used:
                lows, pairs = [grad for grad, _ in used], [stack for _, stack in used]
                like = hidden_TI.new_empty(0, dtype=ctx.dtype)
                of_hidden = ctx.work.expand(lows, pairs, None, like).to(ctx.hidden_dtype)
            if any(needed[1:]):
                of_downs = weight_gradients(ctx, grads_CR, hidden_TI, downs_RI, needed[1:])
        return None, None, None, of_hidden, *of_downs


def weight_gradients(
    ctx: Any,
    grads_CR: Sequence[Tensor | None],
    hidden_TI: Tensor,
    downs_RI: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Compute the gradients of the A that train: zeros where nobody chose, as DDP waits for them."""
    hidden_TI = hidden_TI.to(ctx.dtype)
    found: list[Tensor | None] = []
    for place, (down_RI, wanted) in enumerate(zip(downs_RI, needed, strict=True)):
        grad_CR, expert = grads_CR[place // ctx.experts], place % ctx.experts
        if not wanted or grad_CR is None:
            found.append(None)
            continue
        gradient = ctx.work.weight_gradient(grad_CR, hidden_TI, expert, down_RI.shape[0])
        found.append(gradient.to(down_RI.dtype))
    return found


class Expand(torch.autograd.Function):
    """Out of rank space, added in place to some rows of an output that is there."""

    @staticmethod
    def forward(
        ctx: Any,
        work: Work,
        scale: float,
        part: Columns | None,
        output: Tensor,
        low_CR: Tensor,
        weights_NK: Tensor,
        *ups_OR: Tensor,
    ) -> Tensor:
        """Add to the output, in place, and give it."""
        with without_autocast(output.device):
            gates_C1 = gates_of(work, weights_NK, scale, low_CR)
            target = part_of(output.view(-1, output.shape[-1]), part)
            work.add_to(low_CR * gates_C1, turned(ups_OR), target)
        ctx.work, ctx.scale, ctx.part, ctx.gate_dtype = work, scale, part, weights_NK.dtype
        ctx.save_for_backward(low_CR, gates_C1, *ups_OR)
        ctx.mark_dirty(output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Give the gradients of the output, the rows in rank space, the weights and each B that trains."""
        low_CR, gates_C1, *ups_OR = ctx.saved_tensors
        grad_TO = part_of(grad.reshape(-1, grad.shape[-1]), ctx.part).flatten(1).to(low_CR.dtype)
        with without_autocast(grad.device):
            needed = ctx.needs_input_grad[4:]
            of_low, of_weights, of_ups = back_out(ctx, grad_TO, low_CR, gates_C1, ups_OR, needed)
        return None, None, None, grad, of_low, of_weights, *of_ups


class ExpandThenBase(torch.autograd.Function):
    """Out of rank space first, written; then the base's product is accumulated on top (LoRA-first)."""

    @staticmethod
    def forward(
        ctx: Any,
        work: Work,
        scale: float,
        hidden_TI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        low_CR: Tensor,
        weights_NK: Tensor,
        *ups_OR: Tensor,
    ) -> Tensor:
        """Give the projection, of shape [tokens, d_out]."""
        ctx.work, ctx.scale, ctx.gate_dtype = work, scale, weights_NK.dtype
        with without_autocast(hidden_TI.device):
            gates_C1 = gates_of(work, weights_NK, scale, low_CR)
            ctx.save_for_backward(hidden_TI, weight_OI, low_CR, gates_C1, *ups_OR)
            ups_RO = turned(ups_OR)
            out_TO = work.expand([low_CR * gates_C1], [ups_RO], bias_O, hidden_TI)
            return out_TO.addmm_(hidden_TI, weight_OI.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        """Give the gradients of the input, the base, the rows in rank space, the weights and each B."""
        hidden_TI, weight_OI, low_CR, gates_C1, *ups_OR = ctx.saved_tensors
        hidden_wanted, weight_wanted, bias_wanted, *needed = ctx.needs_input_grad[2:]
        with without_autocast(grad_TO.device):
            of_low, of_weights, of_ups = back_out(
                ctx, grad_TO.to(low_CR.dtype), low_CR, gates_C1, ups_OR, needed
            )
            of_hidden = grad_TO @ weight_OI if hidden_wanted else None
            of_weight = grad_TO.mT @ hidden_TI if weight_wanted else None
            of_bias = grad_TO.sum(0) if bias_wanted else None
        return None, None, of_hidden, of_weight, of_bias, of_low, of_weights, *of_ups


def back_out(
    ctx: Any,
    grad_TO: Tensor,
    low_CR: Tensor,
    gates_C1: Tensor,
    ups_OR: Sequence[Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """Take a gradient back into rank space: of the rows there, of the choices' weights, and of each B."""
    # One narrow tensor at a time: several would be the peak of a step's memory.
    of_ups: list[Tensor | None] = [None] * len(ups_OR)
    if any(needed[2:]):
        scaled_CR = low_CR * gates_C1
        for expert, (up_OR, wanted) in enumerate(zip(ups_OR, needed[2:], strict=True)):
            if wanted:
                gradient_RO = ctx.work.weight_gradient(scaled_CR, grad_TO, expert, up_OR.shape[1])
                of_ups[expert] = gradient_RO.mT.to(up_OR.dtype)
        del scaled_CR
    if not any(needed[:2]):
        return None, None, of_ups
    (back_CR,) = ctx.work.shrink(grad_TO, [turned(ups_OR)])
    of_weights = None
    if needed[1]:
        of_weights = (ctx.work.per_item((back_CR * low_CR).sum(-1)) * ctx.scale).to(ctx.gate_dtype)
    return back_CR.mul_(gates_C1) if needed[0] else None, of_weights, of_ups


def gates_of(work: Work, weights_NK: Tensor, scale: float, low_CR: Tensor) -> Tensor:
    """Give each choice the factor on its expert's output, of shape [choices, 1]."""
    return (work.per_choice(weights_NK) * scale).to(low_CR.dtype).unsqueeze(-1)

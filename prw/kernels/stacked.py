"""A Linear whose weight is several experts' side by side, with no weight gradients for the frozen ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _StackedLinear(torch.autograd.Function):
    """Linear with torch.cat(weights, dim): autograd would compute the gradient of the whole weight."""

    generate_vmap_rule = True

    @staticmethod
    def forward(dim: int, hidden: Tensor, *weights: Tensor) -> Tensor:
        return F.linear(hidden, torch.cat(weights, dim))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dim, hidden, *weights = inputs
        ctx.save_for_backward(hidden, *weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *weights = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_hidden = grad @ torch.cat(weights, ctx.dim).to(grad.dtype) if wanted[1] else None
        sizes = [weight.shape[ctx.dim] for weight in weights]
        # The slices of the stacked axis: outputs of the Linear for dim 0, its inputs for dim 1.
        grads = grad.split(sizes, -1) if ctx.dim == 0 else [grad] * len(weights)
        hiddens = [hidden] * len(weights) if ctx.dim == 0 else hidden.split(sizes, -1)
        of_weights = [
            part_grad.mT @ part_hidden.to(grad.dtype) if needed else None
            for part_grad, part_hidden, needed in zip(grads, hiddens, wanted[2:], strict=True)
        ]
        return None, of_hidden, *of_weights


def stacked_linear(hidden: Tensor, weights: Sequence[Tensor], dim: int) -> Tensor:
    """Compute F.linear(hidden, torch.cat(weights, dim)), the same bits whichever weights train.

    Compiled code takes the plain way: Dynamo instantiates autograd functions, which torch itself warns of.

    Args:
        hidden: Inputs, of shape [tokens, in].
        weights: Each of shape [out, in], or its slice of the axis that is stacked.
        dim: 0 stacks outputs, 1 stacks inputs.
    """
    training = [weight.requires_grad for weight in weights]
    mixed = torch.is_grad_enabled() and any(training) and not all(training)
    if mixed and not torch.compiler.is_compiling():
        output: Tensor = _StackedLinear.apply(dim, hidden, *weights)  # type: ignore[no-untyped-call]
        return output
    return F.linear(hidden, torch.cat(list(weights), dim))

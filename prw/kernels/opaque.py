"""The routed projection as one operator of torch, for graphs: what happens inside is not traced.

Sorting by expert cannot be traced, and the compiler would undo the order of products that the kernels take
care of. Eager code does not come here: an operator costs more to call than an autograd function.
"""

# Shape suffixes: T tokens, N items, K choices per item, C choices in all, I features in, O out, R rank.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prw.kernels.autograd import gates_of
from prw.kernels.projection import line_up
from prw.kernels.work import turned
from prw.precision import experts_dtype, without_autocast


@torch.library.custom_op("prw::routed", mutates_args=())
def routed(
    hidden_TI: Tensor,
    ids_NK: Tensor,
    weights_NK: Tensor,
    downs_RI: Sequence[Tensor],
    ups_OR: Sequence[Tensor],
    scale: float,
    tokens_per_item: int,
    kernel: str,
    fixed: bool,
) -> tuple[Tensor, Tensor]:
    """Compute weight * scale * B_e A_e h, and the rows in rank space; all of the same dtype.

    Args:
        hidden_TI: Inputs, of shape [tokens, d_in].
        ids_NK: Chosen experts, int64 of shape [items, choices]; -1 is none.
        weights_NK: Their weights.
        downs_RI: A of every expert.
        ups_OR: B of every expert.
        scale: LoRA scale.
        tokens_per_item: How many rows an item stands for.
        kernel: Name of a kernel with a backend.
        fixed: Whether stacked copies of weights can be kept.
    """
    with without_autocast(hidden_TI.device):
        work = line_up(kernel, ids_NK, len(downs_RI), tokens_per_item, fixed)
        (low_CR,) = work.shrink(hidden_TI, [downs_RI])
        scaled_CR = low_CR * gates_of(work, weights_NK, scale, low_CR)
        return work.expand([scaled_CR], [turned(ups_OR)], None, hidden_TI), low_CR


@routed.register_fake
def _(
    hidden_TI: Tensor,
    ids_NK: Tensor,
    weights_NK: Tensor,
    downs_RI: Sequence[Tensor],
    ups_OR: Sequence[Tensor],
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    rank = max(down_RI.shape[0] for down_RI in downs_RI)
    delta_TO = hidden_TI.new_empty(hidden_TI.shape[0], ups_OR[0].shape[0])
    return delta_TO, hidden_TI.new_empty(hidden_TI.shape[0] * ids_NK.shape[1], rank)


@torch.library.custom_op("prw::routed_backward", mutates_args=())
def routed_backward(
    grad_TO: Tensor,
    low_CR: Tensor,
    hidden_TI: Tensor,
    ids_NK: Tensor,
    weights_NK: Tensor,
    downs_RI: Sequence[Tensor],
    ups_OR: Sequence[Tensor],
    needed: Sequence[bool],
    scale: float,
    tokens_per_item: int,
    kernel: str,
    fixed: bool,
) -> list[Tensor]:
    """Compute the gradients of input, weights, A and B, in this order: those that are needed."""
    with without_autocast(hidden_TI.device):
        work = line_up(kernel, ids_NK, len(downs_RI), tokens_per_item, fixed)
        gates_C1 = gates_of(work, weights_NK, scale, low_CR)
        (back_CR,) = work.shrink(grad_TO, [turned(ups_OR)])
        of_low_CR = back_CR * gates_C1
        found = []
        if needed[0]:
            found.append(work.expand([of_low_CR], [downs_RI], None, hidden_TI))
        if needed[1]:
            of_weights_NK = work.per_item((back_CR * low_CR).sum(-1)) * scale
            found.append(of_weights_NK.to(weights_NK.dtype))
        experts = len(downs_RI)
        for expert in range(experts):
            if needed[2 + expert]:
                down_RI = downs_RI[expert]
                gradient = work.weight_gradient(of_low_CR, hidden_TI, expert, down_RI.shape[0])
                found.append(gradient.to(down_RI.dtype))
        for expert in range(experts):
            if needed[2 + experts + expert]:
                up_OR = ups_OR[expert]
                gradient = work.weight_gradient(low_CR * gates_C1, grad_TO, expert, up_OR.shape[1])
                found.append(gradient.mT.to(up_OR.dtype).contiguous())
        return found


@routed_backward.register_fake
def _(
    grad_TO: Tensor,
    low_CR: Tensor,
    hidden_TI: Tensor,
    ids_NK: Tensor,
    weights_NK: Tensor,
    downs_RI: Sequence[Tensor],
    ups_OR: Sequence[Tensor],
    needed: Sequence[bool],
    *settings: Any,
) -> list[Tensor]:
    likes = [hidden_TI, weights_NK, *downs_RI, *ups_OR]
    return [like.new_empty(like.shape) for like, wanted in zip(likes, needed, strict=True) if wanted]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden_TI, ids_NK, weights_NK, downs_RI, ups_OR, *ctx.settings = inputs
    ctx.experts = len(downs_RI)
    ctx.needed = [tensor.requires_grad for tensor in (hidden_TI, weights_NK, *downs_RI, *ups_OR)]
    ctx.save_for_backward(output[1], hidden_TI, ids_NK, weights_NK, *downs_RI, *ups_OR)


def _back(ctx: Any, grad_TO: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    low_CR, hidden_TI, ids_NK, weights_NK, *pairs = ctx.saved_tensors
    downs_RI, ups_OR = pairs[: ctx.experts], pairs[ctx.experts :]
    grad_TO = grad_TO.contiguous()
    found = iter(
        routed_backward(
            grad_TO, low_CR, hidden_TI, ids_NK, weights_NK, downs_RI, ups_OR, ctx.needed, *ctx.settings
        )
    )
    of_hidden, of_weights, *of_pairs = (next(found) if wanted else None for wanted in ctx.needed)
    of_downs, of_ups = of_pairs[: ctx.experts], of_pairs[ctx.experts :]
    return of_hidden, None, of_weights, of_downs, of_ups, None, None, None, None


routed.register_autograd(_back, setup_context=_keep)


def opaquely(
    hidden_TI: Tensor,
    downs_RI: Sequence[Tensor],
    ups_OR: Sequence[Tensor],
    ids_NK: Tensor,
    weights_NK: Tensor,
    scale: float,
    kernel: str,
    tokens_per_item: int,
    fixed: bool,
) -> Tensor:
    """Compute the experts' part of a projection by the operator, in the dtype of their arithmetic."""
    hidden_TI = hidden_TI.to(experts_dtype(downs_RI[0], hidden_TI))
    settings = (scale, tokens_per_item, kernel, fixed)
    delta_TO: Tensor
    delta_TO, _ = routed(hidden_TI, ids_NK, weights_NK, list(downs_RI), list(ups_OR), *settings)
    return delta_TO

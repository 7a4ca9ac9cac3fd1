"""The routed projection as one custom operator of torch, for compiled graphs: its inside is not traced.

Sorting by expert cannot be traced, and the compiler would undo the order of products that the kernels take
care of. Eager code does not come here: an operator costs more to call than an autograd function.
"""

# Shape suffixes: T tokens, N items, K choices per item, C choices in all (T * K), I features in, O out,
# R rank.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prw.kernels.autograd import expand_backward, scaled_gates, shrink_backward, transposed
from prw.kernels.dispatch_plan import make_plan
from prw.precision import experts_dtype, without_autocast


@torch.library.custom_op("prw::routed", mutates_args=())
def routed(
    hidden_TI: Tensor,
    ids_NK: Tensor,
    gates_NK: Tensor,
    downs_RI: Sequence[Tensor],
    ups_OR: Sequence[Tensor],
    scale: float,
    tokens_per_item: int,
    kernel: str,
    fixed: bool,
) -> tuple[Tensor, Tensor]:
    """Compute gate * scale * B_e A_e x, and the rows in rank space; all of the same dtype.

    Args:
        hidden_TI: Inputs, of shape [tokens, d_in].
        ids_NK: Chosen experts, int64 of shape [items, choices]; -1 is none.
        gates_NK: Their gates.
        downs_RI: A of every expert.
        ups_OR: B of every expert.
        scale: LoRA scale.
        tokens_per_item: How many rows an item stands for.
        kernel: Name of a kernel with a backend.
        fixed: Whether copies of frozen weights can be cached.
    """
    with without_autocast(hidden_TI.device):
        plan = make_plan(kernel, ids_NK, len(downs_RI), tokens_per_item, fixed)
        (low_CR,) = plan.shrink(hidden_TI, [downs_RI])  # [tokens, d_in] -> [choices, rank]
        scaled_CR = low_CR * scaled_gates(plan, gates_NK, scale, low_CR.dtype)
        return plan.expand([scaled_CR], [transposed(ups_OR)]), low_CR  # -> [tokens, d_out]


@routed.register_fake
def _(
    hidden_TI: Tensor,
    ids_NK: Tensor,
    gates_NK: Tensor,
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
    gates_NK: Tensor,
    downs_RI: Sequence[Tensor],
    ups_OR: Sequence[Tensor],
    needed: Sequence[bool],
    scale: float,
    tokens_per_item: int,
    kernel: str,
    fixed: bool,
) -> list[Tensor]:
    """Compute the gradients of input, gates, A and B, in this order: those that are needed."""
    with without_autocast(hidden_TI.device):
        plan = make_plan(
            kernel, ids_NK, len(downs_RI), tokens_per_item, fixed
        )  # again: no object may be kept
        gates_C1 = scaled_gates(plan, gates_NK, scale, low_CR.dtype)
        of_hidden_needed, of_gates_needed, *of_pairs = needed
        of_downs_needed, of_ups_needed = of_pairs[: len(downs_RI)], of_pairs[len(downs_RI) :]
        of_low_needed = of_hidden_needed or any(of_downs_needed)
        of_low_CR, of_gates_NK, of_ups = expand_backward(
            plan, grad_TO, low_CR, gates_C1, ups_OR, scale, [of_low_needed, of_gates_needed, *of_ups_needed]
        )
        of_hidden_TI, of_downs = shrink_backward(
            plan, [of_low_CR], hidden_TI, [downs_RI], of_hidden_needed, of_downs_needed
        )
        of_gates_NK = None if of_gates_NK is None else of_gates_NK.to(gates_NK.dtype)
        found = [of_hidden_TI, of_gates_NK, *of_downs, *of_ups]
        return [gradient.contiguous() for gradient in found if gradient is not None]


@routed_backward.register_fake
def _(
    grad_TO: Tensor,
    low_CR: Tensor,
    hidden_TI: Tensor,
    ids_NK: Tensor,
    gates_NK: Tensor,
    downs_RI: Sequence[Tensor],
    ups_OR: Sequence[Tensor],
    needed: Sequence[bool],
    *settings: Any,
) -> list[Tensor]:
    likes = [hidden_TI, gates_NK, *downs_RI, *ups_OR]
    return [like.new_empty(like.shape) for like, wanted in zip(likes, needed, strict=True) if wanted]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden_TI, ids_NK, gates_NK, downs_RI, ups_OR, *ctx.settings = inputs
    ctx.experts = len(downs_RI)
    ctx.needed = [tensor.requires_grad for tensor in (hidden_TI, gates_NK, *downs_RI, *ups_OR)]
    ctx.save_for_backward(output[1], hidden_TI, ids_NK, gates_NK, *downs_RI, *ups_OR)


def _back(ctx: Any, grad_TO: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    low_CR, hidden_TI, ids_NK, gates_NK, *pairs = ctx.saved_tensors
    downs_RI, ups_OR = pairs[: ctx.experts], pairs[ctx.experts :]
    grad_TO = grad_TO.contiguous()
    found = iter(
        routed_backward(
            grad_TO, low_CR, hidden_TI, ids_NK, gates_NK, downs_RI, ups_OR, ctx.needed, *ctx.settings
        )
    )
    of_hidden, of_gates, *of_pairs = (next(found) if wanted else None for wanted in ctx.needed)
    of_downs, of_ups = of_pairs[: ctx.experts], of_pairs[ctx.experts :]
    return of_hidden, None, of_gates, of_downs, of_ups, None, None, None, None


routed.register_autograd(_back, setup_context=_keep)


def custom_op(
    hidden_TI: Tensor,
    downs_RI: Sequence[Tensor],
    ups_OR: Sequence[Tensor],
    ids_NK: Tensor,
    gates_NK: Tensor,
    scale: float,
    kernel: str,
    tokens_per_item: int,
    fixed: bool,
) -> Tensor:
    """Compute the experts' part of a projection by the operator; see `routed` for the arguments.

    Returns:
        Of shape [tokens, d_out], in the dtype of the experts' arithmetic.
    """
    hidden_TI = hidden_TI.to(experts_dtype(downs_RI[0], hidden_TI))
    settings = (scale, tokens_per_item, kernel, fixed)
    delta_TO: Tensor
    delta_TO, _ = routed(hidden_TI, ids_NK, gates_NK, list(downs_RI), list(ups_OR), *settings)
    return delta_TO

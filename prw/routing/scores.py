"""The router's products: features with one vector per expert, and their gradient as one product for all."""

# Shape suffixes: B batch, I items, F both in one, D width, E experts.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

ALONE, BLOCK = 8, 32
"""The first experts are scored one by one, later ones in blocks of fixed size that read the features once."""


def router_logits(features_BID: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    """Score features against one router vector per expert.

    The shape of the product that scores an expert depends on its number alone: one product for all would
    round an old expert's logit differently once the pool has grown. In backward there is one for all, since
    a product each would write a gradient of the features for every expert.

    Args:
        features_BID: Of shape [batch, items, d].
        vectors: One per expert, each of shape [1, d]; on any device, as a replica of nn.DataParallel has only
            its features on a device of its own.

    Returns:
        Logits of shape [batch, items, experts].
    """
    (logits_BIE,) = several_logits(features_BID, [vectors])
    return logits_BIE


def several_logits(features_BID: Tensor, lists: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """Score features against several lists of vectors at once, all of one length; see `router_logits`."""
    experts = len(lists[0])
    vectors = [vector.to(features_BID) for listed in lists for vector in listed]
    if torch.compiler.is_compiling() or transformed():
        scores = F.linear(features_BID, torch.cat(vectors))
    else:
        scores = Scores.apply(features_BID, experts, *vectors)  # type: ignore[no-untyped-call]
    logits: tuple[Tensor, ...] = scores.split(experts, dim=-1)
    return logits


def transformed() -> bool:
    """Tell whether a transform of torch or forward-mode gradients are at work, or there are no numbers."""
    if torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0:
        return True
    return torch._C._get_tracing_state() is not None or without_numbers()


def without_numbers() -> bool:
    """Tell whether tensors are fake or recorded, so that their numbers cannot be read."""
    if not torch._C._len_torch_dispatch_stack():
        return False
    kinds = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)
    return any(torch._C._get_dispatch_mode(kind) is not None for kind in kinds)


class Scores(torch.autograd.Function):
    """Products in blocks, and their gradients in one."""

    @staticmethod
    def forward(ctx: Any, features_BID: Tensor, experts: int, *vectors: Tensor) -> Tensor:
        """Give the scores of all lists, one list after the other."""
        ctx.save_for_backward(features_BID, *vectors)
        # As rows: of a strided input, torch would choose a product by whether the vector trains.
        scores, rows_FD = [], features_BID.flatten(0, 1)
        for first in range(0, len(vectors), experts):
            scores += in_blocks(rows_FD, vectors[first : first + experts])
        items = features_BID.shape[:2]
        return torch.cat(scores, dim=-1).view(*items, len(vectors))

    @staticmethod
    def backward(ctx: Any, grad_BIE: Tensor) -> tuple[Tensor | None, ...]:
        """Give the gradients of the features and of the vectors that train."""
        features_BID, *vectors = ctx.saved_tensors
        of_features, _, *needed = ctx.needs_input_grad
        # One expert has all of the softmax, whose gradient is zero. Only a host can look without waiting.
        nothing = grad_BIE.is_cpu and not grad_BIE.any()
        of_features_BID = grad_BIE @ torch.cat(vectors) if of_features and not nothing else None
        training = [place for place, wanted in enumerate(needed) if wanted]
        found: list[Tensor | None] = [None] * len(vectors)
        if training:
            grads = torch.stack([grad_BIE[..., place].flatten() for place in training])
            for place, gradient in zip(training, grads @ features_BID.flatten(0, 1), strict=True):
                found[place] = gradient.unsqueeze(0)
        return of_features_BID, None, *found


def in_blocks(rows_FD: Tensor, vectors: Sequence[Tensor]) -> list[Tensor]:
    """Score the first vectors one by one and later ones in blocks of fixed size."""
    scores = [F.linear(rows_FD, vector) for vector in vectors[:ALONE]]
    for start in range(ALONE, len(vectors), BLOCK):
        block = torch.cat(list(vectors[start : start + BLOCK]))
        padded = F.pad(block, (0, 0, 0, BLOCK - block.shape[0]))
        scores.append(F.linear(rows_FD, padded)[..., : block.shape[0]])
    return scores

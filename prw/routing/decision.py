"""The record of a routing decision: the one thing routers make and kernels, losses and reports read."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RoutingDecision(NamedTuple):
    """Which expert each item (a token, or a whole sample) of one site goes to, and how much of it.

    Attributes:
        expert_ids: Chosen expert, int64 of shape [batch, items]; -1 where the item is not routed.
        weights: Factor on the chosen expert's output, of shape [batch, items]; 0 where not routed.
        probabilities: Softmax over all experts, of shape [batch, items, experts].
        logits: What the softmax was taken of, noise included, of shape [batch, items, experts].

    `items` is the number of tokens, or one where whole samples are routed.
    """

    expert_ids: Tensor
    weights: Tensor
    probabilities: Tensor
    logits: Tensor

    @property
    def num_experts(self) -> int:
        """Size of the pool that was chosen from."""
        return self.probabilities.shape[-1]

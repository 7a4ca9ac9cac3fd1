"""The record of a routing decision: the one thing routers make and kernels, losses and reports read."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RoutingDecision(NamedTuple):
    """Which expert each item (a token, or a whole sample) of one site goes to, and how much of it.

    Attributes:
        expert_ids: Chosen expert, int64 of shape [batch, items]; -1 where the item is not routed. Where an
            item goes to k > 1 experts, of shape [batch, items, k], likeliest first.
        weights: Factor on the chosen expert's output, of the same shape; 0 where not routed.
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

    @property
    def choices(self) -> Tensor:
        """Chosen experts with an axis for several, int64 of shape [batch, items, k]; a view for k = 1."""
        return self.expert_ids if self.expert_ids.dim() == 3 else self.expert_ids.unsqueeze(-1)

    @property
    def routed(self) -> Tensor:
        """Which items are routed, bool of shape [batch, items]."""
        return self.choices[..., 0] >= 0

"""The model under test: one attention-like block with to_k and to_v, frozen, and a plain top-1 router."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.points import Point, Weights


class KeysAndValues(nn.Module):
    """The two projections of one attention block, frozen."""

    def __init__(self, width: int, weights: Weights) -> None:
        super().__init__()
        self.to_k, self.to_v = (frozen_linear(width, *base) for base in weights.bases)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_k(hidden), self.to_v(hidden)


class Block(nn.Module):
    """A model with one site: targets are found in a model, not in their own parent."""

    def __init__(self, point: Point, weights: Weights) -> None:
        super().__init__()
        self.attn = KeysAndValues(point.width, weights)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.attn(hidden)


def frozen_linear(width: int, weight: Tensor, bias: Tensor) -> nn.Linear:
    """Make a Linear of given tensors, without a copy."""
    linear = nn.Linear(width, width, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


class Top1(nn.Module):
    """The router of the baselines that have none of their own: softmax over all experts, then the best.

    It chooses as prw's does in evaluation, decides once for K and V, and draws no noise. Only the newest
    expert's vector trains.
    """

    def __init__(self, gates: Tensor) -> None:
        super().__init__()
        self.frozen = nn.Parameter(gates[:-1].clone(), requires_grad=False)
        self.newest = nn.Parameter(gates[-1:].clone())

    def probabilities(self, hidden: Tensor) -> Tensor:
        vectors = torch.cat([self.frozen, self.newest])
        return (hidden.to(vectors.dtype) @ vectors.T).softmax(-1)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        best = self.probabilities(hidden).max(-1)
        return best.indices, best.values

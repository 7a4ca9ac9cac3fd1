"""Which sample each row of an input belongs to, where axis 0 does not say; means and decisions by sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prw.routing.decision import RoutingDecision


@dataclass(frozen=True, eq=False)
class Groups:
    """The sample of each row.

    Attributes:
        index: Sample of each row, int64 of shape [rows]; rows are an input's axes but the last, flattened.
        count: Number of samples.
    """

    index: Tensor
    count: int

    def mean(self, features: Tensor, routed: Tensor | None) -> Tensor:
        """Average the routed rows of each sample; zeros where none is routed.

        Args:
            features: Of shape [batch, tokens, d], with batch * tokens rows.
            routed: Which rows are routed, bool of shape [batch, tokens]; None means all.

        Returns:
            Of shape [samples, 1, d].
        """
        rows = features.flatten(0, 1)
        counted = self.ones(routed, rows)
        picked = torch.where(counted.bool().unsqueeze(-1), rows, torch.zeros_like(rows))
        sums = rows.new_zeros(self.count, rows.shape[-1]).index_add(0, self.index, picked)
        return (sums / self.sizes(counted).clamp(min=1.0).unsqueeze(-1)).unsqueeze(1)

    def any_routed(self, routed: Tensor | None, like: Tensor) -> Tensor:
        """Tell which samples have a routed row, bool of shape [samples, 1]; one without rows has none."""
        return (self.sizes(self.ones(routed, like)) > 0).unsqueeze(1)

    def ones(self, routed: Tensor | None, like: Tensor) -> Tensor:
        """Give a one for each row that is routed and a zero for the others."""
        if routed is None:
            return like.new_ones(self.index.shape[0])
        return routed.flatten().to(like.dtype)

    def sizes(self, counted: Tensor) -> Tensor:
        """Count the rows of each sample."""
        return counted.new_zeros(self.count).index_add(0, self.index, counted)

    def to_rows(self, decision: RoutingDecision) -> RoutingDecision:
        """Give each row the decision of its sample, from shape [samples, 1] to [1, rows].

        All rows of a sample go together, as its tokens do where axis 0 is the sample.
        """
        return RoutingDecision(*(part[self.index, 0].unsqueeze(0) for part in decision))

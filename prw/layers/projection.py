"""A projection with experts: the experts' part of its output, given a decision of its site."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from prw.kernels import select
from prw.layers.experts import DOWN, UP, weight_of
from prw.layers.site import Site


class RoutedProjection(nn.Module):
    """Wraps a projection and adds the chosen expert's output; the base is never routed (equation 4).

    The experts' part is added in activation space, so the base may be quantised or wrapped.

    Attributes:
        base_layer: What was there before.
        in_features: Width of the input.
        out_features: Width of the output.
        sites: Adapter name to the site this projection belongs to.
        scales: Adapter name to the LoRA scale of its experts here.
    """

    def __init__(self, base_layer: nn.Module, in_features: int, out_features: int) -> None:
        """Wrap a projection; it has no experts yet."""
        super().__init__()
        self.base_layer = base_layer
        self.in_features = in_features
        self.out_features = out_features
        self.sites: dict[str, Site] = {}
        self.scales: dict[str, float] = {}
        self.training = base_layer.training  # noise is drawn in training only, and the base may be evaluating

    def expert_output(self, hidden: Tensor, adapter: str) -> Tensor | None:
        """Compute weight * scale * B_e A_e h for every token.

        Args:
            hidden: Input, of shape [batch, tokens, d_in] or [tokens, d_in].
            adapter: Adapter name.

        Returns:
            Of shape [..., d_out] in the experts' dtype, or None where no expert is in use.
        """
        site = self.sites[adapter]
        decision = site.decide(hidden, self)
        if decision is None:
            return None
        size, settings = decision.num_experts, site.pool.settings
        rows = hidden.reshape(-1, hidden.shape[-1])
        if settings.dropout and self.training:
            rows = F.dropout(rows, settings.dropout)  # by torch's generator, which checkpointing replays
        delta = select(settings.kernel)(
            rows,
            [weight_of(self, f"{DOWN}{index}", adapter) for index in range(size)],
            [weight_of(self, f"{UP}{index}", adapter) for index in range(size)],
            per_token(decision.expert_ids, rows.shape[0]),
            per_token(decision.weights, rows.shape[0]),
            self.scales[adapter],
        )
        return delta.reshape(*hidden.shape[:-1], self.out_features)


def per_token(of_items: Tensor, num_tokens: int) -> Tensor:
    """Repeat decisions so that there is one per token: [batch, items] to [tokens], with k to [tokens, k]."""
    batch, items, *several = of_items.shape
    repeats = num_tokens // max(batch * items, 1)
    return of_items.unsqueeze(2).expand(batch, items, repeats, *several).reshape(num_tokens, *several)

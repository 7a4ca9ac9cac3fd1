"""A projection with experts: the experts' part of its output, given a decision of its site."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from prw.kernels import select
from prw.layers.experts import expert_names, weight_of
from prw.layers.rows import WHOLE, Part, add_rows
from prw.layers.site import Site
from prw.routing import RoutingDecision


class RoutedProjection(nn.Module):
    """Wraps a projection and adds the chosen expert's output; the base is never routed (equation 4).

    The experts' part is added in activation space, so the base may be quantised or wrapped.

    Attributes:
        base_layer: What was there before.
        in_features: Width of the input.
        out_features: Width of the output.
        sites: Adapter name to the site this projection belongs to.
        scales: Adapter name to the LoRA scale of its experts here.
        parts: Adapter name to the parts of the output that experts add to.
    """

    def __init__(self, base_layer: nn.Module, in_features: int, out_features: int) -> None:
        """Wrap a projection; it has no experts yet."""
        super().__init__()
        self.base_layer = base_layer
        self.in_features = in_features
        self.out_features = out_features
        self.sites: dict[str, Site] = {}
        self.scales: dict[str, float] = {}
        self.parts: dict[str, tuple[Part, ...]] = {}
        self.training = base_layer.training  # noise is drawn in training only, and the base may be evaluating

    def parts_of(self, adapter: str) -> tuple[Part, ...]:
        """List the parts of the output that an adapter's experts add to."""
        return self.parts.get(adapter, WHOLE)

    def widths(self, adapter: str) -> tuple[int, ...]:
        """Tell how many rows each part has."""
        return tuple(
            self.out_features if part.rows is None else part.rows.size for part in self.parts_of(adapter)
        )

    def expert_output(
        self, hidden: Tensor, adapter: str, decision: RoutingDecision, part: Part = WHOLE[0]
    ) -> Tensor:
        """Compute weight * scale * B_e A_e h for every token.

        Args:
            hidden: Input, of shape [batch, tokens, d_in] or [tokens, d_in].
            adapter: Adapter name.
            decision: The site's decision for that input.
            part: Which of the adapter's parts.

        Returns:
            Of shape [..., rows of the part] in the experts' dtype.
        """
        size, settings = decision.num_experts, self.sites[adapter].pool.settings
        names = [expert_names(index, part.letter) for index in range(size)]
        rows = hidden.reshape(-1, hidden.shape[-1])
        if settings.dropout and self.training:
            rows = F.dropout(rows, settings.dropout)  # by torch's generator, which checkpointing replays
        delta = select(settings.kernel)(
            rows,
            [weight_of(self, name.down, adapter) for name in names],
            [weight_of(self, name.up, adapter) for name in names],
            per_token(decision.expert_ids, rows.shape[0]),
            per_token(decision.weights, rows.shape[0]),
            self.scales[adapter],
        )
        return delta.reshape(*hidden.shape[:-1], delta.shape[-1])

    def with_experts(self, output: Tensor, hidden: Tensor, adapter: str, strength: float = 1.0) -> Tensor:
        """Add an adapter's experts to what the base gave; the rows that are no part keep their bits.

        Args:
            output: The base's output, of shape [..., d_out].
            hidden: Input, of shape [batch, tokens, d_in] or [tokens, d_in].
            adapter: Adapter name.
            strength: Factor on the experts' output.
        """
        decision = self.sites[adapter].decide(hidden, self)
        if decision is None:
            return output
        added = []
        for part in self.parts_of(adapter):
            delta = self.expert_output(hidden, adapter, decision, part)
            delta = delta if strength == 1.0 else delta * strength
            if part.rows is None:
                return output + delta.to(output.dtype)
            added.append((part.rows, delta))
        return add_rows(output, added)


def per_token(of_items: Tensor, num_tokens: int) -> Tensor:
    """Repeat decisions so that there is one per token: [batch, items] to [tokens], with k to [tokens, k]."""
    batch, items, *several = of_items.shape
    repeats = num_tokens // max(batch * items, 1)
    return of_items.unsqueeze(2).expand(batch, items, repeats, *several).reshape(num_tokens, *several)

"""The dense routed projection in plain operations, for graphs and function transforms.

torch.compile, torch.func and forward-mode gradients see through these; `prw.kernels.dense` does the same by
operations in place, with gradients of its own.
"""

# Shape suffixes: T tokens, K choices, I in features, O out features, R rank, E experts.

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def all_at_once(
    hidden_TI: Tensor,
    downs_RI: Sequence[Tensor],
    ups_OR: Sequence[Tensor],
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    scale: float,
) -> Tensor:
    """Compute what `reference` computes; see there for the arguments."""
    ranks = [down_RI.shape[0] for down_RI in downs_RI]
    low_TR = F.linear(hidden_TI.to(downs_RI[0].dtype), torch.cat(list(downs_RI)))
    chosen_TE, factor_TE = by_expert(expert_ids_TK, weights_TK * scale, len(ranks), low_TR.dtype)
    if len(set(ranks)) == 1:
        low_TER = low_TR.unflatten(-1, (len(ranks), ranks[0]))
        masked_TR = masked(low_TER, chosen_TE.unsqueeze(-1), factor_TE.unsqueeze(-1)).flatten(-2)
    else:
        parts = zip(low_TR.split(ranks, -1), chosen_TE.split(1, -1), factor_TE.split(1, -1), strict=True)
        masked_TR = torch.cat([masked(*part) for part in parts], dim=-1)
    return F.linear(masked_TR, torch.cat(list(ups_OR), dim=1))


def by_expert(ids: Tensor, weights: Tensor, experts: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Say for each token which experts were chosen, and with which weight: two of shape [tokens, experts]."""
    if ids.dim() == 1:
        chosen = ids.unsqueeze(-1) == torch.arange(experts, device=ids.device)
        return chosen, weights.to(dtype).unsqueeze(-1).expand(-1, experts)
    hits = ids.unsqueeze(-1) == torch.arange(experts, device=ids.device)
    spread = torch.where(
        hits, weights.to(dtype).unsqueeze(-1), torch.zeros((), dtype=dtype, device=ids.device)
    )
    return hits.any(1), spread.sum(1)


def masked(low: Tensor, chosen: Tensor, factor: Tensor) -> Tensor:
    """Weigh what was chosen and put zeros elsewhere.

    The others are masked, not multiplied by zero: 0 * inf would leak a broken expert into everybody's output.
    """
    return torch.where(chosen, low * factor, torch.zeros_like(low))

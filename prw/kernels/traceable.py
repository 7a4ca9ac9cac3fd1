"""The routed projection in plain operations, all experts at once, for graphs and function transforms.

torch.export, torch.func and forward-mode gradients see through these; `prw.kernels.dense` computes the same
by operations in place, with gradients of its own.
"""

# Shape suffixes: T tokens, K choices, I features in, O out, R rank, E experts, S sum of ranks.

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def traceable(
    hidden_TI: Tensor,
    downs_RI: Sequence[Tensor],
    ups_OR: Sequence[Tensor],
    expert_ids_TK: Tensor,
    gates_TK: Tensor,
    scale: float,
) -> Tensor:
    """Compute what `reference` computes; see there for the arguments."""
    ranks = [down_RI.shape[0] for down_RI in downs_RI]
    low_TS = F.linear(hidden_TI.to(downs_RI[0].dtype), torch.cat(list(downs_RI)))  # [T, d_in] -> [T, S]
    chosen_TE, factor_TE = by_expert(expert_ids_TK, gates_TK * scale, len(ranks), low_TS.dtype)
    if len(set(ranks)) == 1:
        low_TER = low_TS.unflatten(-1, (len(ranks), ranks[0]))
        masked_TS = masked(low_TER, chosen_TE.unsqueeze(-1), factor_TE.unsqueeze(-1)).flatten(-2)
    else:
        parts = zip(low_TS.split(ranks, -1), chosen_TE.split(1, -1), factor_TE.split(1, -1), strict=True)
        masked_TS = torch.cat([masked(*part) for part in parts], dim=-1)
    return F.linear(masked_TS, torch.cat(list(ups_OR), dim=1))  # [T, S] -> [T, d_out]


def by_expert(ids: Tensor, gates: Tensor, experts: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mark for each token which experts were chosen, and with which gate.

    Args:
        ids: Chosen experts, int64 of shape [tokens] or [tokens, choices].
        gates: Their gates, of the same shape.
        experts: How many there are.
        dtype: Of the gates that are given back.

    Returns:
        Bools and gates, both of shape [tokens, experts].
    """
    if ids.dim() == 1:
        chosen_TE = ids.unsqueeze(-1) == torch.arange(experts, device=ids.device)
        return chosen_TE, gates.to(dtype).unsqueeze(-1).expand(-1, experts)
    hits_TKE = ids.unsqueeze(-1) == torch.arange(experts, device=ids.device)
    spread_TKE = torch.where(
        hits_TKE, gates.to(dtype).unsqueeze(-1), torch.zeros((), dtype=dtype, device=ids.device)
    )
    return hits_TKE.any(1), spread_TKE.sum(1)


def masked(low: Tensor, chosen: Tensor, factor: Tensor) -> Tensor:
    """Multiply what was chosen by its gate and put zeros elsewhere; all of shapes that broadcast.

    The others are masked, not multiplied by zero: 0 * inf would leak a broken expert into every output.
    """
    return torch.where(chosen, low * factor, torch.zeros_like(low))

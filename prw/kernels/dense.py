"""The routed projection without data-dependent shapes: all A at once, a mask in rank space, all B at once.

No expert's full-width output is ever built, every expert stays in the graph (so DDP needs no search for
unused parameters and torch.compile no break), and nothing synchronises with the host. Cost grows with experts
* rank.
"""

# Shape suffixes: T tokens, I in features, O out features, R rank, E experts.

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def dense(
    hidden_TI: Tensor,
    downs_RI: Sequence[Tensor],
    ups_OR: Sequence[Tensor],
    expert_ids_T: Tensor,
    weights_T: Tensor,
    scale: float,
) -> Tensor:
    """Compute what `reference` computes; see there for the arguments."""
    num_experts, rank = len(downs_RI), downs_RI[0].shape[0]
    low_TER = F.linear(hidden_TI.to(downs_RI[0].dtype), torch.cat(list(downs_RI))).unflatten(
        -1, (num_experts, rank)
    )
    numbers_E = torch.arange(num_experts, device=expert_ids_T.device)
    chosen_TE = expert_ids_T.unsqueeze(-1) == numbers_E
    factor_T11 = (weights_T * scale).to(low_TER.dtype)[:, None, None]
    # The others are masked, not multiplied by zero: 0 * inf would leak a broken expert into everybody's
    # output.
    masked_TER = torch.where(chosen_TE.unsqueeze(-1), low_TER * factor_T11, torch.zeros_like(low_TER))
    return F.linear(masked_TER.flatten(-2), torch.cat(list(ups_OR), dim=1))

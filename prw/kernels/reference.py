"""The specification of the routed projection: a plain loop over experts, in any float dtype."""

# Shape suffixes: T tokens, I in features, O out features, R rank.

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def reference(
    hidden_TI: Tensor,
    downs_RI: Sequence[Tensor],
    ups_OR: Sequence[Tensor],
    expert_ids_T: Tensor,
    weights_T: Tensor,
    scale: float,
) -> Tensor:
    """Add up weight * scale * B_e A_e h for every token and its expert e.

    Args:
        hidden_TI: Inputs, of shape [tokens, d_in].
        downs_RI: A of every expert, each of shape [rank, d_in].
        ups_OR: B of every expert, each of shape [d_out, rank].
        expert_ids_T: Chosen expert of each token, int64 of shape [tokens]; -1 gives zeros.
        weights_T: Weight of each token, of shape [tokens].
        scale: LoRA scale.

    Returns:
        The experts' part of the output, of shape [tokens, d_out], in the experts' dtype.
    """
    hidden_TI = hidden_TI.to(downs_RI[0].dtype)
    out_TO = hidden_TI.new_zeros(hidden_TI.shape[0], ups_OR[0].shape[0])
    for expert, (down_RI, up_OR) in enumerate(zip(downs_RI, ups_OR, strict=True)):
        rows = (expert_ids_T == expert).nonzero().squeeze(-1)
        factor = (weights_T[rows] * scale).to(hidden_TI.dtype).unsqueeze(-1)
        delta = (hidden_TI[rows] @ down_RI.T @ up_OR.T) * factor
        out_TO = out_TO.index_add(0, rows, delta.to(out_TO.dtype))
    return out_TO

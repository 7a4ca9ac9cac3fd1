"""The specification of the routed projection: a plain loop over experts, in any float dtype."""

# Shape suffixes: T tokens, K choices, I features in, O out, R rank.

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def reference(
    hidden_TI: Tensor,
    downs_RI: Sequence[Tensor],
    ups_OR: Sequence[Tensor],
    expert_ids_TK: Tensor,
    gates_TK: Tensor,
    scale: float,
) -> Tensor:
    """Sum gate * scale * B_e A_e x for every token and its expert, or experts, e.

    Args:
        hidden_TI: Inputs, of shape [tokens, d_in].
        downs_RI: A of every expert, each of shape [rank, d_in]; ranks may differ.
        ups_OR: B of every expert, each of shape [d_out, rank].
        expert_ids_TK: Chosen expert of each token, int64 of shape [tokens]; or [tokens, choices], no expert
            twice for one token; -1 gives zeros.
        gates_TK: Gate of each choice, of the same shape.
        scale: LoRA scale.

    Returns:
        The experts' part of the output, of shape [tokens, d_out], in the experts' dtype.
    """
    hidden_TI = hidden_TI.to(downs_RI[0].dtype)
    out_TO = hidden_TI.new_zeros(hidden_TI.shape[0], ups_OR[0].shape[0])
    if expert_ids_TK.dim() == 1:
        expert_ids_TK, gates_TK = expert_ids_TK.unsqueeze(-1), gates_TK.unsqueeze(-1)
    for expert, (down_RI, up_OR) in enumerate(zip(downs_RI, ups_OR, strict=True)):
        rows, choices = (expert_ids_TK == expert).nonzero(as_tuple=True)
        factor = (gates_TK[rows, choices] * scale).to(hidden_TI.dtype).unsqueeze(-1)  # [rows, 1]
        # [rows, d_in] -> [rows, rank] -> [rows, d_out]
        delta = (hidden_TI[rows] @ down_RI.T @ up_OR.T) * factor
        out_TO = out_TO.index_add(0, rows, delta.to(out_TO.dtype))
    return out_TO

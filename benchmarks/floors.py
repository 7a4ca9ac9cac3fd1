"""The least that arithmetic allows: a routed pool's floating-point operations over the plain two's."""

from __future__ import annotations


def forward_floor(rank: int, width: int, choices: int = 1) -> float:
    """Least time of a forward over that of the two plain projections, were only multiplications to cost.

    Plain: 2 projections of 2 T d^2 operations. A choice shrinks and expands for each, 2 T d r operations a
    time: 8 T d r k / 4 T d^2 = 2 r k / d.
    """
    return 1 + 2 * rank * choices / width


def training_floor(rank: int, width: int, newest_share: float, choices: int = 1) -> float:
    """Least time of a forward and backward over those of two plain frozen projections.

    Plain: forward and the gradient of the input, 8 T d^2 in all. For each choice, on top: shrink and expand
    (8 T d r), u = G B (4 T d r), and the input's gradient through A (4 T d r). Weight gradients of A and B
    are due only for the share p of choices that fell on the newest expert: 8 T d r p.
    Sum: (16 k + 8 k p) T d r / 8 T d^2 = (2 + p) r k / d.

    Args:
        rank: LoRA rank.
        width: Features in and out.
        newest_share: p, counted from recorded decisions.
        choices: Experts that an item goes to, k.
    """
    return 1 + (2 + newest_share) * rank * choices / width

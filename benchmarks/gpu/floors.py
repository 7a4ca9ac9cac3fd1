"""The least time of a routed projection under the ceilings that were measured in the same run."""

from __future__ import annotations

from benchmarks.gpu.schema import At, Ceiling
from benchmarks.gpu_model import BYTES, Kernel, base, expand, shrink
from benchmarks.schema import Pass


def limit(kernel: Kernel, ceiling: Ceiling) -> float:
    """Least seconds of one kernel: its operations or its bytes, whichever take longer."""
    return max(kernel.flops / ceiling.flops_per_s, kernel.moved / ceiling.bytes_per_s)


def forward_kernels(at: At, used: int) -> list[Kernel]:
    """The products of a forward, each a kernel: shrink, expand that writes, base that adds to it.

    Args:
        at: Sizes.
        used: Experts that somebody chose: the others need not be read.
    """
    t, d, r = at.tokens, at.width, at.rank
    plain = base(t, d)
    if not r:
        return [plain]
    # Written by expand, then read and written again by the base's accumulation.
    adding = plain._replace(name="base, adding", moved=plain.moved + BYTES * 2 * t * d)
    return [shrink(t, d, r, r * used), expand(t, d, r, r * used), adding]


def backward_kernels(at: At, used: int, newest: float) -> list[Kernel]:
    """The products of a backward with only the newest expert trainable.

    Args:
        at: Sizes.
        used: Experts that somebody chose.
        newest: Share of the choices that went to the newest expert.
    """
    t, d, r = at.tokens, at.width, at.rank
    both, x, low = BYTES * 2 * t * d, BYTES * t * d, BYTES * 2 * t * r
    weights, experts = BYTES * 2 * d * d, BYTES * 2 * d * r * used
    plain = Kernel("input's gradient", 4 * t * d * d, both + weights + x)
    if not r:
        return [plain]
    return [
        Kernel("u = G B", 4 * t * d * r, both + experts + low),
        Kernel("input's gradient through A", 4 * t * d * r, low + experts + x),
        plain._replace(name="input's gradient, adding", moved=plain.moved + x),
        Kernel("dA and dB of the newest", 8 * t * d * r * newest, (x + both) * newest + 2 * low),
    ]


def fused(kernels: list[Kernel], moved: float) -> Kernel:
    """All products as one kernel that touches memory as little as can be."""
    return Kernel("fused", sum(kernel.flops for kernel in kernels), moved)


def least_moved(at: At, passes: Pass, used: int) -> float:
    """Bytes that have to be read and written whatever is fused within a pass."""
    t, d, r = at.tokens, at.width, at.rank
    weights, experts = 2 * d * d, 4 * d * r * used
    forward = t * d + weights + experts + 2 * t * d
    if passes == "forward":
        return BYTES * forward
    # G, the weights again, the input for dA where experts train, its gradient; A's and B's gradients.
    backward = 2 * t * d + weights + experts + t * d + (t * d + 4 * d * r if r else 0)
    return BYTES * (forward + backward)


def floors(at: At, passes: Pass, ceiling: Ceiling, used: int, newest: float) -> tuple[float, float]:
    """Give the least seconds if everything were one kernel, and if each product were one."""
    forward = forward_kernels(at, used)
    backward = backward_kernels(at, used, newest) if passes == "training" else []
    ideal = fused(forward + backward, least_moved(at, passes, used))
    return limit(ideal, ceiling), sum(limit(kernel, ceiling) for kernel in forward + backward)

"""Checks rows whose numbers lie beyond what 32 bits can count: T x d above 2^31."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.device import Device
from benchmarks.gpu.problem import with_experts
from benchmarks.gpu.schema import At

RANK, EXPERTS, TAIL = 16, 2, 128
WIDE_TENSORS = 13
"""Tensors of [T, d] that live at once at most: input, output, gradients, and what a kernel takes."""


def needed_bytes(at: At) -> int:
    """Give the memory that the check may take."""
    return WIDE_TENSORS * 2 * tokens_of(at.width) * at.width


def tokens_of(width: int) -> int:
    """Give so many tokens that the last ones' numbers are beyond 2^31."""
    return 2**31 // width + 4 * TAIL


def tail_errors(device: Device, kernel: str, at: At) -> dict[str, float]:
    """Run forward and backward over all rows, and compare the last ones with the reference on them alone."""
    tokens, width, where = tokens_of(at.width), at.width, device.torch_device
    generator = torch.Generator(where).manual_seed(0)

    def draw(*shape: int, std: float = 1.0) -> Tensor:
        made = torch.empty(shape, dtype=torch.bfloat16, device=where)
        return made.normal_(0.0, std, generator=generator)

    weight = draw(width, width, std=width**-0.5)
    downs = [draw(RANK, width, std=width**-0.5) for _ in range(EXPERTS)]
    ups = [draw(width, RANK, std=RANK**-0.5) for _ in range(EXPERTS)]
    hidden, grad = draw(tokens, width).requires_grad_(), draw(tokens, width)
    ids = torch.randint(EXPERTS, (tokens,), generator=generator, device=where)
    gates = torch.rand(tokens, generator=generator, device=where, dtype=torch.float32).bfloat16()
    (out,) = with_experts(hidden, [F.linear(hidden, weight)], [downs], [ups], ids, gates, kernel)
    (of_hidden,) = torch.autograd.grad(out, hidden, grad)
    last = slice(tokens - TAIL, tokens)
    tail = hidden.detach()[last].double().requires_grad_()
    exact = [[matrix.double() for matrix in matrices] for matrices in (downs, ups)]
    base = F.linear(tail, weight.double())
    (wanted,) = with_experts(tail, [base], exact[:1], exact[1:], ids[last], gates[last].double(), "reference")
    (of_tail,) = torch.autograd.grad(wanted, tail, grad[last].double())
    pairs = {"out": (out.detach()[last], wanted.detach()), "grad": (of_hidden[last], of_tail)}
    return {name: float((got.double() - want).norm() / want.norm()) for name, (got, want) in pairs.items()}

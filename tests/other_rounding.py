"""Imitates CPUs on which torch rounds a product by how its operands lie in memory, which is promised nowhere.

`torch.nn.functional.linear` folds the axes of its input into rows if that is contiguous, or if the weight
requires a gradient; else it takes a batched product. And weights that do not begin at a multiple of 64 bytes,
as those of a file, may be multiplied by other kernels. Whether the two round alike depends on the CPU
and on the shapes. Here they never do, so that a test which compares a trainable base with a frozen one, a
strided input with a contiguous one, or weights of a file with fresh ones, fails on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
ROUNDING = 1 + 2.0**-20
ALIGNMENT = 64


def batched_product(input: Tensor, weight: Tensor) -> bool:
    """Tell whether torch takes a batched product."""
    return input.dim() > 2 and not input.is_contiguous() and not weight.requires_grad


def unaligned_weight(input: Tensor, weight: Tensor) -> bool:
    """Tell whether a weight begins anywhere; in a graph that is being compiled it has no address."""
    return not torch.compiler.is_compiling() and weight.data_ptr() % ALIGNMENT != 0


CASES: dict[str, Callable[[Tensor, Tensor], bool]] = {
    "batched_products": batched_product,
    "unaligned_weights": unaligned_weight,
}


def aligned(model: Model) -> Model:
    """Copy weights that a loader has mapped from a file to where torch itself would put them.

    Else a comparison of bits with weights that were never in a file holds by the luck of one CPU.
    """
    for weight in (*model.parameters(), *model.buffers()):
        if weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()
    return model


def imitate(case: str) -> None:
    """Let `torch.nn.Linear` round otherwise in one case, for the rest of the process."""
    plain, applies = nn.Linear.forward, CASES[case]

    @functools.wraps(plain)
    def forward(self: nn.Linear, input: Tensor) -> Tensor:
        output = plain(self, input)
        numbers = type(self.weight.data) is Tensor and not self.weight.is_meta
        return output * ROUNDING if numbers and applies(input, self.weight) else output

    nn.Linear.forward = forward  # type: ignore[method-assign]

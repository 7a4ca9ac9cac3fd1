"""Imitates a CPU on which torch's two ways of multiplying a strided input with a weight round differently.

`torch.nn.functional.linear` folds the axes of its input into rows if that is contiguous, or if the weight
requires a gradient; else it takes a batched product. Whether the two round alike depends on the CPU and on
the shapes. Here they never do, so that a test which compares a trainable base with a frozen one, or a strided
input with a contiguous one, fails on every machine.
"""

from __future__ import annotations

import functools

from torch import Tensor, nn

ROUNDING = 1 + 2.0**-20


def imitate() -> None:
    """Replace the forward of `torch.nn.Linear` for the rest of the process."""
    plain = nn.Linear.forward

    @functools.wraps(plain)
    def forward(self: nn.Linear, input: Tensor) -> Tensor:
        output = plain(self, input)
        batched = input.dim() > 2 and not input.is_contiguous() and not self.weight.requires_grad
        return output * ROUNDING if batched and type(self.weight.data) is Tensor else output

    nn.Linear.forward = forward  # type: ignore[method-assign]

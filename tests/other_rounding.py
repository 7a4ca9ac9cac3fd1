"""Imitates a CPU on which torch rounds a linear layer's product by whether the weight requires a gradient.

Of a strided input with three axes, `torch.nn.functional.linear` folds the axes if the weight requires a
gradient and takes a batched product if not. Whether the two round alike depends on the CPU and on the shapes.
Here they never do, so that a test which compares a trainable base with a frozen one fails on every machine.
"""

from __future__ import annotations

import functools
from typing import Any

import torch.nn.functional as F
from torch import Tensor

ROUNDING = 1 + 2.0**-20


def imitate() -> None:
    """Replace `torch.nn.functional.linear` for the rest of the process."""
    plain = F.linear

    @functools.wraps(plain)
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        output = plain(input, weight, bias)
        strided = input.dim() > 2 and not input.is_contiguous()
        return output * ROUNDING if strided and weight.requires_grad else output

    F.linear = linear

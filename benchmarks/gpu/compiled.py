"""Checks that a pool with a forced kernel can be compiled as one graph and computes the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import prw
from benchmarks.gpu.device import Device
from benchmarks.gpu.schema import At

CLOSE, ROWS = 2e-2, 0.98
"""Relative error of a row, and the share of rows that must keep it: where experts tie, rounding decides."""


class Attention(nn.Module):
    """Key and value projections."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_k, self.to_v = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_k(hidden), self.to_v(hidden)


class Model(nn.Module):
    """One site."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = Attention(width)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.attn(hidden)


def pool(device: Device, kernel: str, at: At) -> nn.Module:
    """Make a pool whose router vectors and B are large, so that experts matter and ties are rare."""
    torch.manual_seed(0)
    model = Model(at.width)
    names = [f"expert_{index}" for index in range(at.experts)]
    prw.inject(model, target="kv", experts=names, rank=at.rank, kernel=kernel)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "prw_gate" in name or "prw_B" in name:
                parameter.normal_(std=1.0 if "prw_gate" in name else at.rank**-0.5)
    return model.to(device.torch_device, device.dtype).eval()


@torch.no_grad()
def compiled_equals_eager(device: Device, kernel: str, at: At, backend: str) -> str:
    """Compile a pool's forward without a break and compare; say what is wrong, or nothing."""
    model = pool(device, kernel, at)
    hidden = torch.randn(at.batch, at.tokens // at.batch, at.width, dtype=device.dtype)
    hidden = hidden.to(device.torch_device)
    wanted = model(hidden)
    torch._dynamo.reset()
    got = torch.compile(model, fullgraph=True, backend=backend)(hidden)
    torch._dynamo.reset()
    for name, one, other in zip(("keys", "values"), got, wanted, strict=True):
        off = (one.double() - other.double()).norm(dim=-1) / other.double().norm(dim=-1)
        close = float((off <= CLOSE).double().mean())
        if not close >= ROWS:
            return f"{name}: {close:.1%} of rows are within {CLOSE:.0e} of the eager ones, wanted {ROWS:.0%}"
    return ""

"""The library under test, through its public names only: pools of every size, by every kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import prw
from benchmarks.peers.block import Block
from benchmarks.points import SCALE, Point, Weights


def routed(point: Point, weights: Weights, kernel: str = "auto") -> tuple[nn.Module, prw.Weave]:
    """A pool of the point's experts, of which the newest and its router vectors train."""
    model = Block(point, weights).to(point.device)
    weave = prw.inject(
        model,
        target="kv",
        experts=[f"expert_{index}" for index in range(point.experts)],
        rank=point.rank,
        alpha=SCALE * point.rank,
        granularity=point.granularity,
        kernel=kernel,
    )
    fill(model, weights)
    return model, weave


@torch.no_grad()
def fill(model: nn.Module, weights: Weights) -> None:
    """Give the experts the point's weights, by the names that every checkpoint of prw has."""
    filled = 0
    parameters = dict(model.named_parameters())
    for index, pairs in enumerate(weights.adapters):
        wanted: dict[str, Tensor] = {f"attn.to_k.prw_gate{index}": weights.gates[index : index + 1]}
        for projection, pair in zip(("to_k", "to_v"), pairs, strict=True):
            wanted[f"attn.{projection}.prw_A{index}"] = pair.down
            wanted[f"attn.{projection}.prw_B{index}"] = pair.up
        for name, value in wanted.items():
            parameters[f"{name}.default.weight"].copy_(value)
            filled += 1
    assert filled == 5 * len(weights.adapters)


def compiled_reference(point: Point, weights: Weights) -> nn.Module:
    """torch.compile of a pool whose kernel is the plain loop over experts.

    What was compiled for earlier points is forgotten first: torch gives up on code that it compiled often.
    """
    torch.compiler.reset()
    return torch.compile(routed(point, weights, "reference")[0])

"""Every competitor at a point, behind one call: `build(name, point).model(hidden)` gives keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

import prw
from benchmarks.peers.block import Block
from benchmarks.peers.from_peft import XLora, arrow, peft_lora
from benchmarks.peers.pool import compiled_reference, routed
from benchmarks.peers.recipes import GroupedRecipe, MixLoraLoop
from benchmarks.points import Point, Weights, weights_of

Factory = Callable[[Point, Weights], nn.Module]

BASELINES: Mapping[str, Factory] = {
    "two nn.Linear": Block,
    "PEFT LoRA": peft_lora,
    "PEFT X-LoRA layer": XLora,
    "PEFT Arrow": arrow,
    "MixLoRA-style loop": MixLoraLoop,
    "transformers grouped_mm": GroupedRecipe,
    "torch.compile of reference": compiled_reference,
}
"""What is not prw's own hot path; README.md says of each what it does and what trains."""

KERNELS = ("reference", "dense", "grouped", "triton")
"""Names that prw may know; which of them it has, and where they run, is its own matter."""


@dataclass(frozen=True)
class Peer:
    """A competitor at a point.

    Attributes:
        name: Of a baseline, or "prw" for the default kernel, or "prw dense" and so on for a forced one.
        point: What it was built for.
        model: Takes hidden states [batch, tokens, d], gives keys and values; in training mode.
        weave: The pool's handle, for prw's own.
    """

    name: str
    point: Point
    model: nn.Module
    weave: prw.Weave | None = None

    def trainable(self) -> list[nn.Parameter]:
        """List what trains."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def build(name: str, point: Point) -> Peer:
    """Build a competitor.

    Args:
        name: A key of `BASELINES`, "prw", or "prw " and a kernel's name.
        point: Where.
    """
    weights, weave = weights_of(point), None
    if name in BASELINES:
        model = BASELINES[name](point, weights)
    elif name == "prw":
        model, weave = routed(point, weights)
    elif name.startswith("prw "):
        model, weave = routed(point, weights, name.removeprefix("prw "))
    else:
        raise ValueError(f"{name!r} is no competitor; there are {', '.join(BASELINES)}, prw, prw <kernel>")
    model.to(device=point.device, dtype=point.expert_dtype)
    return Peer(name, point, model.train(), weave)

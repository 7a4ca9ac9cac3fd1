"""Baselines that are PEFT's own classes: LoRA, X-LoRA's layer, Arrow."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import ArrowConfig, LoraConfig, XLoraConfig, create_arrow_model, get_peft_model
from peft.tuners import lora
from peft.tuners.xlora.layer import XLoraLinearLayer
from torch import Tensor, nn

from benchmarks.peers.block import Block, Top1
from benchmarks.points import SCALE, Adapter, Point, Weights

TARGETS = ("to_k", "to_v")


def lora_config(point: Point) -> LoraConfig:
    return LoraConfig(r=point.rank, lora_alpha=int(SCALE * point.rank), target_modules=list(TARGETS))


def lora_layers(model: nn.Module) -> list[lora.Linear]:
    """Find the wrapped projections, K first."""
    found = [module for module in model.modules() if isinstance(module, lora.Linear)]
    assert len(found) == len(TARGETS)
    return found


@torch.no_grad()
def fill(model: nn.Module, adapter: str, pairs: tuple[Adapter, Adapter]) -> None:
    """Give an adapter the point's weights."""
    for layer, pair in zip(lora_layers(model), pairs, strict=True):
        layer.lora_A[adapter].weight.copy_(pair.down)
        layer.lora_B[adapter].weight.copy_(pair.up)


def train_only(model: nn.Module, adapter: str) -> None:
    """Freeze every LoRA pair but one adapter's."""
    for layer in lora_layers(model):
        for part in (layer.lora_A, layer.lora_B):
            for name, linear in part.items():
                linear.weight.requires_grad_(name == adapter)


def peft_lora(point: Point, weights: Weights) -> nn.Module:
    """PEFT's LoRA on K and V: the pool's newest expert as the only one."""
    model = get_peft_model(Block(point, weights), lora_config(point), adapter_name="newest")
    fill(model, "newest", weights.adapters[-1])
    return model


class XLora(nn.Module):
    """X-LoRA's layers under scalings that a plain router makes, in one pass.

    X-LoRA itself runs the whole model twice, first for its classifier; that is left out, in its favour.
    """

    def __init__(self, point: Point, weights: Weights) -> None:
        super().__init__()
        names = [str(index) for index in range(point.experts)]
        self.model = get_peft_model(Block(point, weights), lora_config(point), adapter_name=names[0])
        for name in names[1:]:
            self.model.add_adapter(name, lora_config(point))
        for name, pairs in zip(names, weights.adapters, strict=True):
            fill(self.model, name, pairs)
        self.model.base_model.set_adapter(names)
        train_only(self.model, names[-1])
        self.router = Top1(weights.gates)
        config = XLoraConfig(hidden_size=point.width, adapters=dict.fromkeys(names, ""))
        self.layers = [
            XLoraLinearLayer(SimpleNamespace(disabled=False), layer, layer.forward, index, config)
            for index, layer in enumerate(lora_layers(self.model))
        ]

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        probabilities = self.router.probabilities(hidden).to(hidden.dtype)
        scalings = probabilities.unsqueeze(2).expand(-1, -1, len(self.layers), -1)
        return tuple(layer.forward(hidden, scalings=scalings) for layer in self.layers)


def arrow(point: Point, weights: Weights) -> nn.Module:
    """PEFT's Arrow with top_k = 1 over the pool's experts; its router is its own and learns nothing."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / str(index)) for index in range(point.experts)]
        for path, pairs in zip(paths, weights.adapters, strict=True):
            single = get_peft_model(Block(point, weights), lora_config(point))
            fill(single, "default", pairs)
            single.save_pretrained(path)
        model = create_arrow_model(
            base_model=Block(point, weights),
            task_specific_adapter_paths=paths,
            arrow_config=ArrowConfig(top_k=1, router_temperature=1.0),
        )
    train_only(model, f"task_{point.experts - 1}")
    model.to(point.device)
    return model

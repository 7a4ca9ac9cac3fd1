"""What trains and how much: sites, experts and parameters, counted on a base without weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import prw
from prw.config import PoolSettings
from recipes.cologen.costs.shapes import BaseShape


class Counts(NamedTuple):
    """Numbers of parameters, and of sites."""

    sites: int
    per_expert: int
    """LoRA pairs of one expert, of all sites."""
    router_per_expert: int
    """What one expert adds to the routers: a gate and a noise vector at each site."""
    base: dict[str, int]
    """Frozen parameters of each part of the base."""
    linear: int
    """Those of the transformer's that a quantisation of its linear layers reaches."""
    largest_layer: int
    """Of the layer of text encoders and VAE that has most."""


def count_parameters(shape: BaseShape, pool: PoolSettings) -> Counts:
    """Count a base and one expert of a pool."""
    with FakeTensorMode():
        model = shape.build(torch.float32)
        base = {name: _numel(getattr(model, name)) for name in shape.parts}
        linear = sum(
            module.weight.numel()
            for module in model.transformer.modules()
            if isinstance(module, torch.nn.Linear)
        )
        frozen = [layer for name in shape.parts[1:] for layer in getattr(model, name).modules()]
        largest = max(sum(weight.numel() for weight in layer.parameters(recurse=False)) for layer in frozen)
        before = {id(weight) for weight in model.transformer.parameters()}
        weave = prw.inject(model.transformer, target="kv", **pool.model_dump())
        weave.add_expert("expert")
        added = {
            name: weight.numel()
            for name, weight in model.transformer.named_parameters()
            if id(weight) not in before
        }
        pairs = sum(count for name, count in added.items() if ".prw_A" in name or ".prw_B" in name)
        return Counts(len(weave.sites), pairs, sum(added.values()) - pairs, base, linear, largest)


def _numel(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())

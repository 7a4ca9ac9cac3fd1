"""Folding a pool into the base's weights, where that is exact: where no weight depends on the input."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from prw.errors import PoolError, UnsupportedError
from prw.layers import Pool, pair_of
from prw.tuner.growth import pool_of
from prw.tuner.injection import TrainedBefore, pool_layers, take_out
from prw.tuner.layer import Layers, PrwLinear


def constant_weights(pool: Pool, size: int | None = None) -> bool:
    """Return whether each of a pool's first experts has weight one for every token, whatever the input."""
    size = len(pool.experts) if size is None else size
    return size == 1 or (pool.settings.gate == "unit" and pool.settings.top_k >= size > 0)


def merged_weights(model: nn.Module, layers: Layers, adapter: str, size: int) -> dict[nn.Parameter, Tensor]:
    """Compute what the base's weights become with the `size` oldest experts; nothing is changed yet.

    Raises:
        UnsupportedError: if it would not be exact, or the base is not a plain Linear; says why.
        PoolError: if a `with` block is open, or the pool is switched off.
    """
    pool = pool_of(layers, adapter)
    pool.check_settled("merging")
    if isinstance(model, PeftModel):
        raise UnsupportedError(
            "this model is wrapped by peft.get_peft_model; model.merge_and_unload() merges the pool and "
            "gives the model inside."
        )
    if not constant_weights(pool, size):
        raise UnsupportedError(why_not(pool, size))
    owners = [id(weight) for module in model.modules() for weight in module._parameters.values()]
    wrapped = {
        id(inner)
        for module in model.modules()
        if isinstance(module, BaseTunerLayer) and isinstance(inner := module.base_layer, PrwLinear)
    }
    merged = {}
    for path, layer in layers.items():
        if adapter not in layer.active_adapters or layer.disable_adapters:
            raise PoolError(
                f"the pool's adapter {adapter!r} is switched off, so merging would change what the model "
                f"does. Switch it on first: model.set_adapter({adapter!r}), model.enable_adapters()."
            )
        weight = plain_weight(path, layer, owners.count(id(getattr(layer.base_layer, "weight", None))))
        if id(layer) in wrapped:
            raise UnsupportedError(
                f"another adapter wraps {path} and may read its weight. Unload or merge it first."
            )
        change = torch.stack([delta(layer, adapter, index) for index in range(size)]).sum(0)
        change = change.T if is_transposed(layer.base_layer) else change
        merged[weight] = (weight.detach().double() + change).to(weight.dtype)
    return merged


def merge(
    model: nn.Module, layers: Layers, adapter: str, size: int, trained_before: TrainedBefore | None
) -> None:
    """Add the `size` oldest experts to the base's weights and take the pool out; see `merged_weights`."""
    merged = merged_weights(model, layers, adapter, size)
    take_out(model, adapter, trained_before)
    with torch.no_grad():
        for weight, value in merged.items():
            weight.copy_(value)


def merge_all(model: nn.Module, adapters: Iterable[str]) -> dict[nn.Parameter, Tensor]:
    """Compute what the base's weights become if several pools are merged; nothing is changed yet.

    Raises:
        UnsupportedError: if it would not be exact for one of them; says why.
        PoolError: if one has no experts, is switched off, or is no pool.
    """
    merged: dict[nn.Parameter, Tensor] = {}
    for adapter in adapters:
        layers = pool_layers(model, adapter)
        pool = pool_of(layers, adapter)
        if not pool.experts:
            raise PoolError(f"the pool {adapter!r} is empty: call model.unload() to take it out.")
        for weight, value in merged_weights(model, layers, adapter, len(pool.experts)).items():
            merged[weight] = merged[weight] + value - weight.detach() if weight in merged else value
    return merged


def why_not(pool: Pool, size: int) -> str:
    """Explain why the weights are not constant, and what to do."""
    settings = pool.settings
    reason = (
        f"a pool of {size} experts cannot be merged into the base's weights: its router chooses "
        f"{min(settings.top_k, size)} of them by the input"
    )
    if settings.top_k >= size:
        reason = (
            f"a pool of {size} experts with gate='prob' cannot be merged into the base's weights: how much "
            "each of them counts depends on the input"
        )
    return (
        f"{reason}. What can be merged: a pool of one expert, the pool as of its first "
        f"(weave.merge(as_of={pool.experts[0]!r})), or gate='unit' with top_k of at least the pool's size. "
        "One expert as a plain LoRA, which PEFT and diffusers can merge, comes from weave.export_lora."
    )


def plain_weight(path: str, layer: PrwLinear, owners: int) -> nn.Parameter:
    """Return the base's weight, if adding to it is exact and changes nothing else.

    Raises:
        UnsupportedError: if it is quantised, 16-bit, sharded, shared, or inside another adapter.
    """
    base, problem = layer.base_layer, ""
    weight = getattr(base, "weight", None)
    if isinstance(base, BaseTunerLayer):
        problem = f"another adapter ({type(base).__name__}) lies between; unload or merge it first"
    elif (
        not (type(base) is nn.Linear or is_transposed(base))
        or type(weight) is not nn.Parameter
        or type(weight.data) is not Tensor
    ):
        kind = f"{type(base).__name__} of {type(getattr(weight, 'data', weight)).__name__}"
        problem = f"it is a {kind}, quantised or of another kind than a plain nn.Linear or Conv1D"
    elif weight.dtype not in (torch.float32, torch.float64) or weight.is_meta:
        problem = (
            f"its weight is {weight.dtype} on {weight.device}, which would round the experts' part away in "
            "parts; convert the base first, with model.float()"
        )
    elif (weight.T if is_transposed(base) else weight).shape != (layer.out_features, layer.in_features):
        problem = f"its weight has shape {tuple(weight.shape)}, and the experts act on a part of it"
    elif owners > 1:
        problem = "its weight is shared with another module, which would change too"
    if problem or not isinstance(weight, nn.Parameter):
        raise UnsupportedError(f"{path} cannot take experts into its weight: {problem}.")
    return weight


def is_transposed(base: nn.Module) -> bool:
    """Return whether a projection is transformers' Conv1D, with a weight of [d_in, d_out]."""
    return type(base).__name__ == "Conv1D" and type(base).__module__ == "transformers.pytorch_utils"


def delta(layer: PrwLinear, adapter: str, index: int) -> Tensor:
    """Multiply out what an expert adds to a projection's weight, in float64."""
    down, up = pair_of(layer, adapter, index)
    return up.double() @ down.double() * (layer.scales[adapter] * layer.strengths[adapter])

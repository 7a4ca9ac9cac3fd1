"""Moves a pool's weights between a model and a dictionary, checking all before changing any."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from prw.errors import StorageError, first_few
from prw.layers import container_names
from prw.storage.sharded import put, whole
from prw.tuner import PEFT_PREFIX, Layers


def pool_parameters(layers: Layers, adapter: str, experts: int | None = None) -> dict[str, nn.Parameter]:
    """Name the weights of a pool as PEFT's files do: base_model.model.<path>.prw_A0.weight.

    Args:
        layers: The projections of the pool, by path.
        adapter: Adapter name.
        experts: Only those of the first so many experts; None means all.
    """
    wanted = (
        None if experts is None else {name for index in range(experts) for name in container_names(index)}
    )
    parameters: dict[str, nn.Parameter] = {}
    for path, layer in layers.items():
        for name in layer.adapter_layer_names:
            if adapter in getattr(layer, name) and (wanted is None or name in wanted):
                parameters[f"{PEFT_PREFIX}{path}.{name}.weight"] = getattr(layer, name)[adapter].weight
    return parameters


def pool_state(layers: Layers, adapter: str) -> dict[str, Tensor]:
    """Copy every weight of a pool, on the CPU; under FSDP2 every process must ask."""
    return {name: whole(weight) for name, weight in pool_parameters(layers, adapter).items()}


def fill(layers: Layers, adapter: str, weights: Mapping[str, Tensor], experts: int | None = None) -> None:
    """Put weights into a pool, all of them or none.

    Args:
        layers: The projections of the pool, by path.
        adapter: Adapter name.
        weights: Weights as in a pool's file.
        experts: How many of the pool's first experts the weights are of, at every site; None means all.

    Raises:
        StorageError: if weights are missing, left over or of another shape; nothing was changed then.
    """
    parameters = pool_parameters(layers, adapter, experts)
    unknown = sorted(set(weights) - set(parameters))
    missing = sorted(set(parameters) - set(weights))
    if unknown or missing:
        raise StorageError(
            f"the saved pool does not fit this model: {len(missing)} weights are missing "
            f"({first_few(missing)}), "
            f"{len(unknown)} have no place ({first_few(unknown)}). "
            "Likely another base model, or other targets."
        )
    odd = [name for name, weight in weights.items() if weight.shape != parameters[name].shape]
    if odd:
        name = odd[0]
        raise StorageError(
            f"the saved pool does not fit this model: {name} has shape {tuple(weights[name].shape)}, the "
            f"model needs {tuple(parameters[name].shape)} ({len(odd)} such weights). Likely another base "
            "model."
        )
    for name, weight in weights.items():
        put(parameters[name], weight)

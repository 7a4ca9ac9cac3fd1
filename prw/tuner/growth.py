"""Growing, freezing and shrinking a pool: which weights train when, in PEFT's own terms."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from prw.config import one_form
from prw.errors import PoolError
from prw.layers import Pool, container_names, expert_names, pair_names
from prw.tuner.config import PrwConfig, check_name
from prw.tuner.layer import Layers, PrwLinear


def training_containers(config: PrwConfig) -> set[str]:
    """Name the containers that train: the newest expert's, and veterans' router vectors if asked for."""
    last = len(config.experts) - 1
    training: set[str] = set()
    if last >= 0 and not config.newest_frozen:
        training.update(container_names(last))
        if config.experts[last] in config.imported:
            training.difference_update(pair_names(last))
        if config.train_veteran_gates:
            training.update(name for index in range(last) for name in expert_names(index)[2:])
    if not config.noise:
        training.difference_update(expert_names(index).noise for index in range(last + 1))
    return training


def refresh_training(layers: Layers, adapter: str, config: PrwConfig) -> None:
    """Make the layers train what the configuration says."""
    training = training_containers(config)
    for layer in layers.values():
        active = adapter in layer.active_adapters or len(layer.sites) == 1
        layer.freeze_except(adapter, training, trainable=active and not config.inference_mode)


def trainable_parameters(layers: Layers, adapter: str, config: PrwConfig) -> list[nn.Parameter]:
    """List what an optimiser should get, layer by layer.

    Raises:
        PoolError: if any of it is frozen, so that an optimiser would train less than was asked for.
    """
    training = training_containers(config)
    parameters = [
        parameter
        for layer in layers.values()
        for name in layer.adapter_layer_names
        if name in training and holds(layer, name, adapter)
        for parameter in getattr(layer, name)[adapter].parameters()
    ]
    off = sum(not parameter.requires_grad for parameter in parameters)
    if off:
        raise PoolError(
            f"{off} of the {len(parameters)} parameters that should train are frozen: the pool was loaded "
            "for inference, another adapter was switched to, or the model was frozen as a whole. Load it "
            "with prw.load(model, path) or PeftModel.from_pretrained(..., is_trainable=True), or switch back "
            f"with model.set_adapter({adapter!r})."
        )
    return parameters


def pool_of(layers: Layers, adapter: str) -> Pool:
    """Return the pool that the layers belong to; without any layers that is a PoolError."""
    for layer in layers.values():
        return layer.sites[adapter].pool
    raise PoolError(f"the model has no experts under adapter {adapter!r}; call prw.inject(model) first.")


def grow(
    layers: Layers,
    adapter: str,
    config: PrwConfig,
    name: str,
    init: str | None = None,
    ranks: Mapping[str, int] | None = None,
) -> None:
    """Add an expert to every projection, freeze the older ones and let the new one train.

    Args:
        layers: The projections of the pool, by path.
        adapter: Adapter name.
        config: The pool's configuration, which is updated.
        name: Name of the new expert.
        init: None or "zero" starts at zero output; the name of a veteran copies its ranks, A and B.
        ranks: The expert's own ranks, as a pattern; None means the settings'.

    Raises:
        ConfigError: if the name is unusable.
        PoolError: if `init` names no expert of the pool.
    """
    pool, name, init = pool_of(layers, adapter), one_form(name), init and one_form(init)
    check_name(name, config.experts)
    source = None if init in (None, "zero") else pool.index(str(init))
    index = len(config.experts)
    ranks = config.expert_ranks.get(str(init)) if source is not None else ranks
    before = config.experts, config.expert_ranks
    config.experts = [*config.experts, name]
    if ranks:
        config.expert_ranks = {**config.expert_ranks, name: dict(ranks)}
    sync_names(pool, config)
    try:
        for layer in layers.values():
            layer.add_expert(adapter, index)
            if source is not None:
                copy_expert(layer, adapter, source, index)
    except BaseException:
        config.experts, config.expert_ranks = before
        sync_names(pool, config)
        for layer in layers.values():
            shift_experts(layer, adapter, index, index)
        raise
    config.newest_frozen = False
    config.inference_mode = False
    refresh_training(layers, adapter, config)


def sync_names(pool: Pool, config: PrwConfig) -> None:
    """Give the pool the experts' names and ranks that the configuration has now."""
    pool.experts = tuple(config.experts)
    pool.expert_ranks = config.expert_ranks


def copy_expert(layer: PrwLinear, adapter: str, source: int, index: int) -> None:
    """Overwrite one expert's A and B by another's."""
    with torch.no_grad():
        for old, new in zip(pair_names(source), pair_names(index), strict=True):
            if holds(layer, old, adapter):
                getattr(layer, new)[adapter].weight.copy_(getattr(layer, old)[adapter].weight)


def freeze_newest(layers: Layers, adapter: str, config: PrwConfig) -> None:
    """End the newest expert's training: nothing trains until an expert is added."""
    config.newest_frozen = True
    refresh_training(layers, adapter, config)


def remove(layers: Layers, adapter: str, config: PrwConfig, name: str) -> None:
    """Take out an expert and its router vectors; later ones move up a place, and no veteran trains again.

    Raises:
        PoolError: if there is no such expert, or a `with` block is open.
    """
    pool, name = pool_of(layers, adapter), one_form(name)
    index, last = pool.index(name), len(pool.experts) - 1
    pool.check_settled(f"removing {name!r}")
    for layer in layers.values():
        shift_experts(layer, adapter, index, last)
    config.newest_frozen = config.newest_frozen or index == last
    config.change_names(lambda expert: None if expert == name else expert)
    sync_names(pool, config)
    refresh_training(layers, adapter, config)


def rename(layers: Layers, adapter: str, config: PrwConfig, old: str, new: str) -> None:
    """Rename an expert; nothing else changes.

    Raises:
        PoolError: if there is no expert `old`.
        ConfigError: if `new` is unusable or taken.
    """
    pool, old, new = pool_of(layers, adapter), one_form(old), one_form(new)
    pool.index(old)
    check_name(new, config.experts)
    config.change_names(lambda expert: new if expert == old else expert)
    for stage, entry in config.stages.items():  # an entry names its stage, and the one that it starts from
        config.stages[stage] = {key: new if value == old else value for key, value in entry.items()}
    sync_names(pool, config)


def holds(layer: PrwLinear, name: str, adapter: str) -> bool:
    """Return whether a layer's container has a weight of an adapter; another pool may have it to itself."""
    return name in layer.adapter_layer_names and adapter in getattr(layer, name)


def shift_experts(layer: PrwLinear, adapter: str, index: int, last: int) -> None:
    """Move the experts after `index` one place up and drop the containers of the last place."""
    for place in range(index, last):
        for here, there in zip(container_names(place), container_names(place + 1), strict=True):
            if holds(layer, there, adapter):
                getattr(layer, here)[adapter] = getattr(layer, there)[adapter]
    for name in container_names(last):
        if holds(layer, name, adapter):
            del getattr(layer, name)[adapter]
            if len(getattr(layer, name)) == 0:
                delattr(layer, name)
                layer.adapter_layer_names = tuple(kept for kept in layer.adapter_layer_names if kept != name)

"""Puts a pool into a model through PEFT and takes it out again; keeps track of what else of the base trains.

A pool is saved and recalled stage by stage; what trains beside it, such as an unfrozen head, is not. So the
end of each stage stores its checksums in the pool's configuration, which show later whether it has changed.
"""

from __future__ import annotations

import copy
import warnings
import zlib
from collections.abc import Iterator
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.weak import WeakIdKeyDictionary

from prw.errors import PoolError, TargetError, UnsupportedError
from prw.layers import Pool
from prw.tuner.config import PrwConfig
from prw.tuner.growth import refresh_training
from prw.tuner.layer import PrwLinear
from prw.tuner.module_paths import PEFT_PREFIX, base_path, inner_model, refuse_fixed

TrainedBefore = list[tuple[str, nn.Parameter, bool]]
"""A parameter's name without adapters, the parameter, and whether it trained."""
Active = dict[nn.Module, list[str]]
SWITCHES = (BaseTunerLayer, AuxiliaryTrainingWrapper)
"""Modules that PEFT switches between adapters."""

_FLAGS: WeakKeyDictionary[nn.Module, TrainedBefore] = WeakKeyDictionary()
"""What trained in a model's base before its first pool; kept here and not on the model."""
OTHERS = "Adapters that were active before this pool"
"""How the warning starts that a host is about to switch other adapters off."""
HOST_FLAG = "_hf_peft_config_loaded"
"""The flag by which transformers and diffusers know of adapters; without it transformers' `save_pretrained`
writes the wrapped base under names that no base model has, and the projections are lost on loading."""


UNKNOWN = -1
"""The checksum of a weight that is on no device, like an offloaded one."""

_SUMS = WeakIdKeyDictionary()
"""A parameter's version and place in memory, and the checksum of its bits then."""


def model_for_pool(model: nn.Module) -> nn.Module:
    """Check that a pool can be put into a model, and return the model inside its wrappers.

    Raises:
        TargetError: if it is not a torch model.
        UnsupportedError: if PEFT wraps it, or a wrapper that has noted its parameters already.
    """
    refuse_no_model(model)
    refuse_fixed(model)
    inner = inner_model(model)
    if isinstance(inner, PeftModel):
        raise UnsupportedError(
            "this model is wrapped by PEFT, whose wrapper holds adapters of one method only. Inject into the "
            "model inside (prw.inject(model.base_model.model, ...)), or wrap with "
            "get_peft_model(model, prw.PrwConfig(...))."
        )
    return inner


def put_in(model: nn.Module, config: PrwConfig, adapter: str) -> None:
    """Inject a pool into a model that `model_for_pool` returned; a failure leaves the model as it was.

    Raises:
        PoolError: if the adapter's name is unusable, or the model already has an adapter of that name.
    """
    if not adapter or "." in adapter:
        raise PoolError(
            f"an adapter's name is part of its weights' names: not empty and without a dot; got {adapter!r}."
        )
    if adapter in getattr(model, "peft_config", {}):
        raise PoolError(
            f"{type(model).__name__} already has an adapter {adapter!r}. Eject it, or pass another name as "
            "adapter=."
        )
    config = copy.deepcopy(config)
    if config.base_model_name_or_path is None:
        name = getattr(getattr(model, "config", None), "_name_or_path", None)
        config.base_model_name_or_path = name or None
    flags = [(name, parameter, parameter.requires_grad) for name, parameter in model.named_parameters()]
    active = {module: list(module.active_adapters) for module in switches(model)}
    before = trained_before(model) or base_flags(model)
    with warnings.catch_warnings():
        # PEFT warns that there will be several adapters, which is what was asked for.
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        warnings.filterwarnings("ignore", message=OTHERS)  # they are switched on again below
        try:
            inject_adapter_in_model(config, model, adapter)
        except BaseException:
            unwrap(model, adapter)
            activate(model, active, [])
            restore(model, flags)
            raise
    activate(model, active, [adapter])
    _FLAGS[model] = before
    if hasattr(model, HOST_FLAG):
        vars(model)[HOST_FLAG] = True


def refuse_no_model(model: object) -> None:
    """Refuse what is not a torch model but, say, a pipeline of several."""
    if not isinstance(model, nn.Module):
        raise TargetError(
            f"expected a torch model, got a {type(model).__name__}. Of a diffusers pipeline pass the "
            "denoiser (pipe.transformer, pipe.unet), or use prw.load_pipeline and prw.save_pipeline."
        )


def take_out(model: nn.Module, adapter: str, before: TrainedBefore | None = None) -> None:
    """Put back the very modules that were there and, with the last adapter, whether the base trained.

    Args:
        model: The model; a PeftModel is refused.
        adapter: Adapter name.
        before: What `trained_before` returned while the pool was there; None asks it now.
    """
    if isinstance(model, PeftModel):
        raise UnsupportedError("this model is wrapped by peft.get_peft_model; call model.unload() instead.")
    flags = trained_before(model) if before is None else before
    unwrap(model, adapter)
    for name, config in getattr(model, "peft_config", {}).items():
        if isinstance(config, PrwConfig):  # PEFT's deleting has switched the others' training on
            refresh_training(pool_layers(model, name), name, config)
    if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        restore(model, flags)
        _FLAGS.pop(model, None)


def trained_before(model: nn.Module) -> TrainedBefore:
    """Return which of the base's parameters trained before its first pool; empty if prw put none in."""
    has_pool = any(isinstance(module, PrwLinear) and module.sites for module in model.modules())
    return _FLAGS.get(model, []) if has_pool else []


def base_flags(model: nn.Module) -> TrainedBefore:
    """List the parameters that belong to no adapter, and whether they train."""
    return [(name, parameter, parameter.requires_grad) for name, parameter in base_parameters(model)]


def base_parameters(
    model: nn.Module, adapter: str = "", only_training: bool = False
) -> Iterator[tuple[str, nn.Parameter]]:
    """Iterate once over the parameters that belong to no adapter, in the model's order.

    Args:
        model: The model.
        adapter: Also give this adapter's own copies of modules, as of modules_to_save.
        only_training: Leave out what does not require a gradient.

    Yields:
        The parameter's name without wrappers and adapters, and the parameter.
    """
    todo, seen = [("", model)], set()
    while todo:  # quicker than named_parameters(), and walks into no adapter
        prefix, module = todo.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                if parameter.requires_grad or not only_training:
                    yield base_path(prefix + name).removeprefix(PEFT_PREFIX), parameter
        children = list(base_children(module, adapter))
        todo += [(f"{prefix}{name}.", child) for name, child in reversed(children)]


def base_children(module: nn.Module, adapter: str) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over a module's children that belong to no adapter, and one adapter's own copies of modules."""
    hidden = module.adapter_layer_names if isinstance(module, SWITCHES) else ()
    for name, child in module._modules.items():
        if child is not None and name not in hidden:
            yield name, child
        elif child is not None and adapter and isinstance(module, AuxiliaryTrainingWrapper):
            for path, part in child.named_modules():
                if path.rpartition(".")[2] == adapter:
                    yield f"{name}.{path}", part


def restore(model: nn.Module, flags: TrainedBefore) -> None:
    """Make parameters train as they did, including those that have replaced others.

    Resized embeddings and `load_state_dict(assign=True)` put new parameters in.
    """
    known = {id(parameter) for _, parameter, _ in flags}
    by_name = {name: flag for name, _, flag in flags}
    for _, parameter, flag in flags:
        parameter.requires_grad_(flag)
    for name, parameter in base_parameters(model):
        if id(parameter) not in known and name in by_name:
            parameter.requires_grad_(by_name[name])


def switches(model: nn.Module) -> Iterator[Any]:
    """Iterate over the modules that PEFT switches between adapters."""
    return (m for m in model.modules() if isinstance(m, SWITCHES))


def activate(model: nn.Module, active: Active, added: list[str]) -> None:
    """Undo PEFT's switch to the adapter that it has just injected, and activate that one beside the others.

    Every PRW layer gets the same list, as PEFT and transformers expect; which parameters train does not
    change.
    """
    ours = [name for module, names in active.items() if isinstance(module, PrwLinear) for name in names]
    for module in switches(model):
        if isinstance(module, PrwLinear):
            module._active_adapter = list(dict.fromkeys([*ours, *added]))
        elif module in active:
            module._active_adapter = active[module]


def unwrap(model: nn.Module, adapter: str) -> None:
    """Remove a pool's weights and its configuration, and put back projections that no pool needs any more."""
    for path, layer in [
        (path, module) for path, module in model.named_modules() if isinstance(module, PrwLinear)
    ]:
        if adapter in layer.sites:
            unwatch(model, layer.sites[adapter].pool)
            layer.delete_adapter(adapter)
        if not layer.sites:
            put_back(model, path, layer)
    if "peft_config" in vars(model):
        forget(model, adapter)


def unwatch(model: nn.Module, pool: Pool) -> None:
    """Remove the hooks by which a pool follows a model's forwards."""
    if pool.batch_sizes is not None:
        pool.batch_sizes.unwatch(model)


def put_back(model: nn.Module, path: str, layer: PrwLinear) -> None:
    """Put the projection that was there before back into its place."""
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, layer.base_layer)


def forget(model: nn.Module, adapter: str) -> None:
    """Drop an adapter's configuration from a model, and the attribute itself with the last one."""
    configs: dict[str, Any] = vars(model)["peft_config"]
    configs.pop(adapter, None)
    if not configs:
        del model.peft_config
        if HOST_FLAG in vars(model):
            vars(model)[HOST_FLAG] = False


def pool_layers(model: nn.Module, adapter: str) -> dict[str, PrwLinear]:
    """Find the projections of a pool, by their path at injection; without any that is a PoolError."""
    found: dict[str, PrwLinear] = {}
    for module in layers_of(model, adapter):
        members = module.sites[adapter].projections
        found[next(path for path, layer in members.items() if layer is module)] = module
    return found or no_pool(model, adapter)


def find_pool(model: nn.Module, adapter: str) -> Pool:
    """Find a pool by the first of its projections; without one that is a PoolError."""
    layer = next(layers_of(model, adapter), None)
    return no_pool(model, adapter) if layer is None else layer.sites[adapter].pool


def layers_of(model: nn.Module, adapter: str) -> Iterator[PrwLinear]:
    """Iterate over the projections of a pool."""
    return (m for m in model.modules() if isinstance(m, PrwLinear) and adapter in m.sites)


def adapters_with_pools(model: nn.Module) -> list[str]:
    """List the adapter names of a model's pools."""
    layers = (module for module in model.modules() if isinstance(module, PrwLinear))
    return list(dict.fromkeys(adapter for layer in layers for adapter in layer.sites))


def no_pool(model: nn.Module, adapter: str) -> NoReturn:
    """Refuse a model that has no pool under an adapter name; says which pools it has."""
    others = adapters_with_pools(model)
    if others:
        raise PoolError(
            f"{type(model).__name__} has no pool of experts under adapter {adapter!r}, but under "
            f"{', '.join(map(repr, others))}. Pass adapter={others[0]!r}."
        )
    raise PoolError(
        f"{type(model).__name__} has no pool of experts under adapter {adapter!r}: it was ejected, never "
        "injected, or taken out by unload_lora_weights() of diffusers. Call prw.inject(model) or "
        "prw.load(model, path)."
    )


# -------------------------------------------------------------------------------- parameters beside the pool


def parameters_beside(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """List by plain name what trains and belongs to no adapter, and a pool's copies of modules_to_save."""
    return dict(base_parameters(model, adapter, only_training=True))


def note_beside(model: nn.Module, adapter: str, config: PrwConfig) -> None:
    """Store the checksums of what trained beside the newest expert, as its stage ends."""
    beside = parameters_beside(model, adapter)
    if beside:
        sums = {name: checksum(parameter) for name, parameter in beside.items()}
        config.trained_beside = {**config.trained_beside, config.experts[-1]: sums}


def changed_since(model: nn.Module, adapter: str, config: PrwConfig, expert: str) -> list[str]:
    """List the parameters beside the pool that are not known to be as they were when an expert's stage ended.

    The newest expert's stage has not ended while it trains, so nothing has changed since.
    """
    place = config.experts.index(expert)
    if torch.compiler.is_compiling():
        return []
    if place == len(config.experts) - 1 and not config.newest_frozen:
        return []
    beside = parameters_beside(model, adapter)
    if not beside and not config.trained_beside:
        return []
    suspects = set(beside)
    for later in config.experts[place:]:
        suspects.update(config.trained_beside.get(later, {}))
    then = config.trained_beside.get(expert, {})
    now = {name: found for name, found in base_parameters(model, adapter) if name in suspects}
    sums = {name: checksum(found) for name, found in now.items() if name in then}
    same = {name for name, total in sums.items() if total == then[name] != UNKNOWN}
    return sorted(suspects - same)


def checksum(parameter: nn.Parameter) -> int:
    """Return the checksum of a parameter's bits; it is computed once until the parameter changes.

    Where it is split over several processes, all of them must call this. A change that torch does not count,
    such as `parameter.data.mul_(2)`, goes unnoticed.

    Returns:
        The checksum; UNKNOWN where accelerate has offloaded the weights.
    """
    if parameter.is_meta:
        return UNKNOWN
    if parameter.is_inference():
        return crc(parameter)
    state = (parameter._version, parameter.data_ptr() if not isinstance(parameter, DTensor) else 0)
    if parameter not in _SUMS or _SUMS[parameter][0] != state:
        _SUMS[parameter] = (state, crc(parameter))
    total: int = _SUMS[parameter][1]
    return total


def crc(parameter: nn.Parameter) -> int:
    """Compute the checksum of a parameter's bits."""
    weight = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    bits = weight.detach().cpu().contiguous().flatten().view(torch.uint8)
    return zlib.crc32(bits.numpy().data)

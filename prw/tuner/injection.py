"""Puts a pool into a model through PEFT and takes it out, leaving all else as it was."""

from __future__ import annotations

import warnings
from typing import Any

from peft import PeftModel, inject_adapter_in_model
from torch import nn

from prw.errors import PoolError, UnsupportedError
from prw.tuner.config import PrwConfig
from prw.tuner.layer import PrwLinear

TrainedBefore = list[tuple[nn.Parameter, bool]]


def put_in(model: nn.Module, config: PrwConfig, adapter: str) -> TrainedBefore:
    """Inject a pool; a failure leaves the model as it was.

    Returns:
        Every parameter of the base with its `requires_grad` before, for `take_out`.

    Raises:
        UnsupportedError: if PEFT wraps the model.
        PoolError: if the model has an adapter of that name already.
    """
    if isinstance(model, PeftModel):
        raise UnsupportedError(
            "this model is wrapped by PEFT; use model.add_adapter(name, prw.PrwConfig(...)) instead."
        )
    if adapter in getattr(model, "peft_config", {}):
        raise PoolError(
            f"{type(model).__name__} already has an adapter {adapter!r}. Eject it, or pass another name as "
            "adapter=."
        )
    if config.base_model_name_or_path is None:
        config.base_model_name_or_path = (
            getattr(getattr(model, "config", None), "_name_or_path", None) or None
        )
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with warnings.catch_warnings():
        # PEFT warns that there will be several adapters, which is what was asked for.
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        try:
            inject_adapter_in_model(config, model, adapter)
        except BaseException:
            take_out(model, adapter, before)
            raise
    return before


def take_out(model: nn.Module, adapter: str, before: TrainedBefore) -> None:
    """Put back the very modules that were there, and whether their parameters trained.

    Raises:
        UnsupportedError: if PEFT wraps the model.
    """
    if isinstance(model, PeftModel):
        raise UnsupportedError("this model is wrapped by peft.get_peft_model; call model.unload() instead.")
    for path, layer in [
        (path, module) for path, module in model.named_modules() if isinstance(module, PrwLinear)
    ]:
        if adapter in layer.sites:
            layer.delete_adapter(adapter)
        if not layer.sites:
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.base_layer)
    if "peft_config" in vars(model):
        forget(model, adapter)
    for parameter, flag in before:
        parameter.requires_grad_(flag)


def forget(model: nn.Module, adapter: str) -> None:
    """Drop an adapter's configuration from a model, and the attribute itself with the last one."""
    configs: dict[str, Any] = vars(model)["peft_config"]
    configs.pop(adapter, None)
    if not configs:
        del model.peft_config
        if "_hf_peft_config_loaded" in vars(model):
            vars(model)["_hf_peft_config_loaded"] = False  # transformers' own note that adapters are there


def pool_layers(model: nn.Module, adapter: str) -> dict[str, PrwLinear]:
    """Find the projections of a pool, by their path at injection.

    Raises:
        PoolError: if the model has no pool under that adapter name.
    """
    found: dict[str, PrwLinear] = {}
    for module in model.modules():
        if isinstance(module, PrwLinear) and adapter in module.sites:
            members = module.sites[adapter].projections
            found[next(path for path, layer in members.items() if layer is module)] = module
    if not found:
        raise PoolError(
            f"{type(model).__name__} has no pool of experts under adapter {adapter!r}: it was ejected, or "
            "never injected. Call prw.inject(model) or prw.load(model, path)."
        )
    return found

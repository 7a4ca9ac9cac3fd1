"""LoRAs beside the pool: diffusers' own calls for LoRAs would switch the pool off, or drop it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from peft.tuners.tuners_utils import BaseTunerLayer

from prw.errors import UnsupportedError
from prw.tuner import PrwLinear, pool_layers
from recipes.cologen.pipeline.pool import lora_names, pool_of


def name_beside_pool(transformer: Any, adapter_name: str | None) -> str | None:
    """The name to load a LoRA under; None where there is no pool and none was given.

    Raises:
        UnsupportedError: The name is the pool's.
    """
    weave = pool_of(transformer)
    if weave is None:
        return adapter_name
    if adapter_name == weave.adapter:
        raise UnsupportedError(
            f"the adapter name {weave.adapter!r} is the pool's; give the LoRA another adapter_name."
        )
    return free_name(transformer.peft_config) if adapter_name is None else adapter_name


def keep_pool_active(transformer: Any, names: Sequence[str]) -> None:
    """Activate the pool beside the LoRAs that were activated just now, if it is not among them."""
    weave = pool_of(transformer)
    if weave is None or weave.adapter in names:
        return
    for layer in transformer.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_adapter([*names, weave.adapter])


def switch_pool_on(transformer: Any) -> None:
    """Switch the pool's layers on again, where something switched all adapters off."""
    weave = pool_of(transformer)
    if weave is not None:
        for layer in pool_layers(transformer, weave.adapter).values():
            layer.enable_adapters(True)


def unload_beside_pool(pipe: Any, reset_to_overwritten_params: bool) -> None:
    """Take every LoRA out of a pipeline whose transformer has a pool.

    Raises:
        UnsupportedError: Weights that a control LoRA replaced are to come back.
    """
    if reset_to_overwritten_params:
        raise UnsupportedError(
            "reset_to_overwritten_params puts whole projections back, experts and all. Eject the pool "
            "first (pipe.weave.eject()), and load it again afterwards."
        )
    for name in pipe._lora_loadable_modules:
        take_loras_out(getattr(pipe, name, None))
    norms = getattr(pipe.transformer, "_transformer_norm_layers", None)
    if norms:  # a control LoRA brings norms of its own; diffusers keeps those that were there
        pipe.transformer.load_state_dict(norms, strict=False)
        pipe.transformer._transformer_norm_layers = None


def names_to_fuse(pipe: Any, components: Sequence[str], adapter_names: list[str] | None) -> list[str] | None:
    """The LoRAs to fuse: those that are named, or all active ones but the pool.

    Raises:
        UnsupportedError: The pool is named.
    """
    instead = "cannot be fused, since which expert acts depends on the input"
    refuse_pool(pipe.transformer, adapter_names or (), instead)
    weave = pool_of(pipe.transformer)
    if adapter_names is not None or weave is None:
        return adapter_names
    parts = [getattr(pipe, name, None) for name in components]
    return [name for name in active_adapters(parts) if name != weave.adapter]


def active_loras(pipe: Any, listed: Sequence[str]) -> list[str]:
    """The active LoRAs of a pipeline, without the pool; what diffusers has listed if there is none."""
    if pool_of(pipe.transformer) is None:
        return list(listed)
    parts = [getattr(pipe, name, None) for name in pipe._lora_loadable_modules]
    loras = {name for part in parts for name in lora_names(part)}
    return [name for name in active_adapters(parts) if name in loras]


def refuse_pool(transformer: Any, names: Collection[str], instead: str) -> None:
    """Refuse a call for LoRAs that names the pool.

    Raises:
        UnsupportedError: Says what holds for the pool instead.
    """
    weave = pool_of(transformer)
    if weave is not None and weave.adapter in names:
        raise UnsupportedError(f"{weave.adapter!r} is the pool, not a LoRA: it {instead}.")


def free_name(taken: Collection[str]) -> str:
    """Name a LoRA as diffusers does, which may give one name twice to LoRAs that act on other layers."""
    return next(name for count in range(len(taken) + 1) if (name := f"default_{count}") not in taken)


def active_adapters(models: Iterable[Any]) -> list[str]:
    """List the adapters that act in some models, each once."""
    layers = [
        layer
        for model in models
        if model is not None
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
    ]
    return list(dict.fromkeys(name for layer in layers for name in layer.active_adapters))


def take_loras_out(model: Any) -> None:
    """Put back what every LoRA of a model was wrapped around; a pool stays, around or inside it."""
    names = () if model is None else lora_names(model)
    if not names:
        return
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            inner: Any = child
            while isinstance(inner, BaseTunerLayer) and not isinstance(inner, PrwLinear):
                inner = getattr(inner, "base_layer")  # noqa: B009  # peft does not declare it
            if inner is not child:
                setattr(parent, child_name, inner)
    for name in names:
        del model.peft_config[name]
    if not model.peft_config:
        del model.peft_config
        model._hf_peft_config_loaded = False
    _maybe_remove_and_reapply_group_offloading(model)

"""The PEFT tuner of PRW: makes the layers and sites of a plan, and keeps the peace with other adapters."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _ExcludedModule,
    check_target_module_exists,
)
from torch import nn

from prw.errors import PoolError, TargetError, UnsupportedError
from prw.layers import Pool, Site
from prw.tuner.config import PrwConfig
from prw.tuner.growth import refresh_training
from prw.tuner.host_calls import refuse_without_settings
from prw.tuner.injection import OTHERS, layers_of, put_back, unwatch, unwrap
from prw.tuner.layer import PrwLinear
from prw.tuner.merging import merge_all
from prw.tuner.mha import PrwAttention
from prw.tuner.module_paths import (
    PEFT_PREFIX,
    base_path,
    current_paths,
    paths_in,
    plain_path,
    refuse_fixed,
    with_current_names,
    wrapped_by,
)
from prw.tuner.targets import plan_pool, projections_of, unwrapped, widths_of


class PrwModel(BaseTuner):
    """What `get_peft_model` wraps a model in; `inject_adapter_in_model` makes one only to inject."""

    prefix = "prw_"
    tuner_layer_cls = PrwLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # PEFT declares it so

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **options: Any) -> None:
        """Inject a pool; see PEFT for the arguments.

        Raises:
            UnsupportedError: if the model's wrapper would leave the experts out.
            PoolError: if another adapter of the model has that name.
        """
        refuse_fixed(model)
        refuse_taken(model, adapter_name)
        super().__init__(model, peft_config, adapter_name, **options)
        self.peft_config = self.model.peft_config = AdapterConfigs.around(self.peft_config)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Any] | None = None,
    ) -> None:
        """Plan a pool, then let PEFT walk over the modules and call the methods below.

        The pool gets a copy of the configuration, since the caller may use it for another model too. A
        failure leaves neither layers nor the configuration behind.
        """
        try:
            plan = plan_pool(
                model, cast(PrwConfig, self.peft_config[adapter_name]), paths_in(state_dict or ())
            )
            self.peft_config[adapter_name] = plan.config
            self._plan = plan
            self._pool = Pool(plan.config.settings(), tuple(plan.config.experts), plan.config.expert_ranks)
            self._sites: dict[str, Site] = {}
            warn_of_others(model, self.active_adapters)
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
        except BaseException:
            unwrap(model, adapter_name)
            self.peft_config.pop(adapter_name, None)
            raise

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        """Return the configuration as it is; the plan has completed it."""
        return peft_config

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> Any:  # type: ignore[override]
        """Take exactly the modules that were asked for, where PEFT takes every path that ends like one."""
        path = plain_path(key)
        if path in self._plan.asked and wrapped_by(self.model.get_submodule(key)) is None:
            return True
        excluded = check_target_module_exists(peft_config, path)
        return excluded if isinstance(excluded, _ExcludedModule) else False

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        """Wrap one projection and make it a member of its site.

        Raises:
            TargetError: if a state dict has weights of a module that cannot carry experts.
        """
        path = plain_path(current_key)
        plan = self._plan.sites.get(path)
        if plan is None:
            raise TargetError(
                f"{path} is a {type(target).__name__} in a {type(parent).__name__}; experts go on linear "
                "projections and on nn.MultiheadAttention as a whole."
            )
        if plan.name not in self._sites:
            self._sites[plan.name] = Site(plan.name, self._pool, adapter_name)
        parent, target_name, target = inside_others(parent, target_name, target)
        layer = target if isinstance(target, PrwLinear) else wrap(target, path)
        layer.join(adapter_name, self._sites[plan.name], path, plan.slices[path])
        refresh_training({path: layer}, adapter_name, cast(PrwConfig, peft_config))
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _post_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        """Restore whole paths, which PEFT shortens to common ends where there are many."""
        cast(PrwConfig, config).target_modules = list(self._plan.sites)
        if self._pool.batch_sizes is not None:
            self._pool.batch_sizes.watch(model)
            self._pool.batch_sizes.watch(self)  # this wrapper calls the model's forward past its hooks

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keep experts in float32, or give them the base's dtype as PEFT does with a LoRA if asked to."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            cast_to_base(self.model, adapter_name)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Name a saved weight after its projection, without the adapters and wrappers around it."""
        name: str = super()._remove_adapter_name_from_key(key, adapter_name)
        return base_path(name) if ".prw_" in name else name

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Any]
    ) -> dict[str, Any]:
        """Rename saved weights to those of the model, also where the host has renamed its modules since.

        Raises:
            PoolError: if they are a LoRA's, loaded under the pool's name; PEFT would silently load nothing.
        """
        if any(".lora_" in key for key in state_dict) and not any(".prw_" in key for key in state_dict):
            raise PoolError(
                f"the adapter name {adapter_name!r} is a pool's on this model, and the weights to load are a "
                "LoRA's. Load the LoRA under another name, as with adapter_name='style'."
            )
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        places = {
            cls._remove_adapter_name_from_key(key, adapter_name).removeprefix(PEFT_PREFIX): key
            for key in pool_weights(model, adapter_name, model.state_dict())
        }
        state = with_current_names(
            state_dict, current_paths(base, paths_in(state_dict), projections_of(base).keys())
        )
        return {places.get(name.removeprefix(PEFT_PREFIX), name): weight for name, weight in state.items()}

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Any],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Any]:
        """Select a pool's weights for saving, if its settings will be saved too.

        A wrapper may leave its part out of the weights' names.
        """
        refuse_without_settings()
        return pool_weights(model, adapter_name, state_dict)

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *args: Any, adapter_names: Any = None, **kwargs: Any
    ) -> Iterator[None]:
        """Refuse a forward in which each row of the batch asks for its own adapter.

        Raises:
            UnsupportedError: says what to do instead.
        """
        if adapter_names is not None:
            raise UnsupportedError(
                "adapter_names=[...] asks for another adapter in every row of a batch, and a pool acts on a "
                "whole batch. Switch with model.set_adapter(name) and call the model once per adapter."
            )
        yield

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        """Take the adapters out, merged into the base's weights if wanted.

        If a pool cannot be merged, nothing changes.

        Raises:
            UnsupportedError: if merging would not be exact; says why.
            PoolError: with `safe_merge`, if a merged weight would not be finite.
        """
        wanted = (self.active_adapters if adapter_names is None else adapter_names) if merge else []
        merged = merge_all(self.model, wanted)
        if safe_merge and not all(bool(value.isfinite().all()) for value in merged.values()):
            raise PoolError("a merged weight would not be finite: the pool, or the base, holds NaN or inf.")
        for adapter in self.peft_config:
            self._unwatch(adapter)
        if merge:
            for path, layer in list(self.model.named_modules()):
                if isinstance(layer, PrwLinear):
                    put_back(self.model, path, layer)
            with torch.no_grad():
                for weight, value in merged.items():
                    weight.copy_(value)
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete a pool and its hooks."""
        self._unwatch(adapter_name)
        super().delete_adapter(adapter_name)

    def _unwatch(self, adapter: str) -> None:
        """Remove a pool's hooks from the model and from this wrapper."""
        for layer in layers_of(self.model, adapter):
            unwatch(self.model, layer.sites[adapter].pool)
            unwatch(self, layer.sites[adapter].pool)


def pool_weights(model: nn.Module, adapter: str, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Select a pool's weights from those of the whole model."""
    pool = {
        plain_path(path)
        for path, layer in model.named_modules()
        if isinstance(layer, PrwLinear) and adapter in layer.sites
    }
    end = f".{adapter}.weight"
    return {
        key: weight
        for key, weight in state_dict.items()
        if key.endswith(end) and plain_path(key.removesuffix(end)).rpartition(".prw_")[0] in pool
    }


def inside_others(parent: nn.Module, name: str, target: nn.Module) -> tuple[nn.Module, str, nn.Module]:
    """Go inside other adapters, so that their weights keep their names and their files load without prw."""
    while isinstance(target, BaseTunerLayer) and not isinstance(target, PrwLinear):
        inner = target.base_layer
        if not isinstance(inner, nn.Module) or isinstance(unwrapped(target), nn.MultiheadAttention):
            break
        parent, name, target = target, "base_layer", inner
    return parent, name, target


def wrap(target: nn.Module, path: str) -> PrwLinear:
    """Put a projection into a layer without experts.

    Raises:
        TargetError: if another adapter is around an nn.MultiheadAttention.
    """
    in_features, out_features = widths_of(target)
    if not isinstance(unwrapped(target), nn.MultiheadAttention):
        return PrwLinear(target, in_features, out_features)
    if isinstance(target, BaseTunerLayer):
        raise TargetError(
            f"{path} is an nn.MultiheadAttention that a {type(target).__name__} of PEFT is around already. "
            "Inject the pool first, or leave that attention out with exclude=."
        )
    return PrwAttention(target, in_features, out_features)


# ------------------------------------------------------------------------------- other adapters of the model


class AdapterConfigs(dict[str, PeftConfig]):
    """The configurations of a model's adapters, in which no other adapter can replace that of a pool.

    PEFT overwrites the configuration of an adapter of the same name, and calls every adapter "default" unless
    it is named; the pool could then no longer be saved.

    A model that had adapters before its first pool may be inside a `PeftModel`, which keeps the dictionary of
    before. What is written here is written there too.
    """

    _before: dict[str, PeftConfig] | None = None

    @classmethod
    def around(cls, configs: dict[str, PeftConfig]) -> AdapterConfigs:
        """Return these configurations in a dictionary of this class."""
        if isinstance(configs, cls):
            return configs
        new = cls(configs)
        new._before = configs
        return new

    def __setitem__(self, name: str, config: PeftConfig) -> None:
        """Set an adapter's configuration.

        Raises:
            PoolError: if a pool has that name.
        """
        if isinstance(self.get(name), PrwConfig) and not isinstance(config, PrwConfig):
            raise PoolError(
                f"a new adapter with a {type(config).__name__} asks for the name {name!r}, which a pool on "
                "this model has. Give the new adapter another name, as with adapter_name='style'."
            )
        super().__setitem__(name, config)
        if self._before is not None:
            self._before[name] = config

    def __delitem__(self, name: str) -> None:
        """Remove an adapter's configuration."""
        super().__delitem__(name)
        if self._before is not None:
            self._before.pop(name, None)

    def pop(self, name: str, *default: Any) -> Any:
        """Remove an adapter's configuration, and return it or a default."""
        if self._before is not None:
            self._before.pop(name, None)
        return super().pop(name, *default)

    def update(self, *others: Any, **named: PeftConfig) -> None:
        """Set several configurations.

        Raises:
            PoolError: if a pool has one of the names.
        """
        for name, config in dict(*others, **named).items():
            self[name] = config


def refuse_taken(model: nn.Module, adapter: str) -> None:
    """Refuse a name under which the model has an adapter already."""
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and adapter in module._all_available_adapter_names():
            raise PoolError(
                f"{type(model).__name__} already has an adapter {adapter!r}, a {type(module).__name__} at "
                f"{path}. Give the pool another name, as with adapter_name='pool', or delete that adapter."
            )


def warn_of_others(model: nn.Module, mine: Collection[str]) -> None:
    """Warn that `add_adapter` of transformers and diffusers leaves only the newest adapter active.

    It ends in `set_adapter(new)`, which switches off a LoRA that was there; `prw.inject` and `prw.load` leave
    it active and need no warning.

    Args:
        model: The model that gets a pool.
        mine: Adapters that will be active: the new one, or those of the PeftModel that it is added to.
    """
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    others = {name for layer in layers for name in layer.active_adapters}.difference(mine)
    if others:
        names = sorted(others)
        warnings.warn(
            f"{OTHERS} ({', '.join(names)}) are switched off by transformers' and diffusers' add_adapter, "
            f"which leaves the pool alone active. Call model.set_adapter({[*names, *mine]!r}) to have all of "
            "them, or use prw.inject(model, ...), which leaves them on.",
            stacklevel=2,
        )


def cast_to_base(model: nn.Module, adapter: str) -> None:
    """Give an adapter's experts and router vectors the dtype of their projection, if that computes in it."""
    for layer in model.modules():
        if not isinstance(layer, PrwLinear):
            continue
        weight = next(layer.get_base_layer().parameters(), None)
        if weight is None or not weight.is_floating_point() or weight.element_size() < 2:
            continue  # quantised, or stored in fp8: no dtype to compute in
        for name in layer.adapter_layer_names:
            if adapter in getattr(layer, name):
                getattr(layer, name)[adapter].to(weight.dtype)

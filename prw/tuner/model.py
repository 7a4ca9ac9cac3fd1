"""The PEFT tuner of PRW: finds the projections, wraps them, and ties those of one block to one site."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
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

from prw.errors import ConfigError, PoolError, TargetError, UnsupportedError
from prw.layers import WHOLE, NoiseStream, Part, Pool, Site
from prw.tuner.adapters import AdapterConfigs, refuse_taken
from prw.tuner.attention import PrwAttention
from prw.tuner.callers import refuse_without_settings
from prw.tuner.citizenship import cast_to_base, warn_of_others
from prw.tuner.config import PrwConfig
from prw.tuner.grouping import adaptable, candidates, sites_of, unwrapped, widths_of
from prw.tuner.growth import refresh_training
from prw.tuner.injection import layers_of, put_back, unwatch, unwrap
from prw.tuner.layer import PrwLinear
from prw.tuner.merging import merge_all
from prw.tuner.moving import moved_weights, paths_in
from prw.tuner.parts import parts_of_target
from prw.tuner.resolving import resolve
from prw.tuner.wrapping import PEFT_PREFIX, base_path, module_at, plain_path, refuse_fixed, wrapped_by


class PrwModel(BaseTuner):
    """What `get_peft_model` wraps a model in, and what `inject_adapter_in_model` uses once and lets go."""

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
        """Inject a pool with a configuration of its own: the caller's may be used again for another model.

        What fails leaves neither layers nor the configuration behind.
        """
        config = cast(PrwConfig, copy.deepcopy(self.peft_config[adapter_name]))
        self.peft_config[adapter_name] = config
        self._in_state = paths_in(state_dict or ())
        try:
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
        except BaseException:
            unwrap(model, adapter_name)
            self.peft_config.pop(adapter_name, None)
            raise

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Name a saved weight by its projection alone, whatever lies around the pool or wraps its blocks."""
        name: str = super()._remove_adapter_name_from_key(key, adapter_name)
        return base_path(name) if ".prw_" in name else name

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Any]
    ) -> dict[str, Any]:
        """Find the places of saved weights, also of projections that have moved since.

        Raises:
            PoolError: if they are a LoRA's, loaded under the pool's name; PEFT would load nothing and say so
                nowhere.
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
        state = moved_weights(base, state_dict)
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

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        """Take the adapters out, merged into the base's weights if wanted.

        A pool that cannot be merged is an error before anything has changed.

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
        """Delete a pool and the hooks of its own."""
        self._unwatch(adapter_name)
        super().delete_adapter(adapter_name)

    def _unwatch(self, adapter: str) -> None:
        """Take a pool's hooks off the model and this wrapper."""
        for layer in layers_of(self.model, adapter):
            unwatch(self.model, layer.sites[adapter].pool)
            unwatch(self, layer.sites[adapter].pool)

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *args: Any, adapter_names: Any = None, **kwargs: Any
    ) -> Iterator[None]:
        """Refuse a forward in which every row of the batch asks for an adapter of its own.

        Raises:
            UnsupportedError: says what to do instead.
        """
        if adapter_names is not None:
            raise UnsupportedError(
                "adapter_names=[...] asks for another adapter in every row of a batch, and a pool acts on a "
                "whole batch. Switch with model.set_adapter(name) and call the model once per adapter."
            )
        yield

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        return peft_config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        """Turn "kv" and patterns into paths, and plan sites and parts, before PEFT walks the model."""
        config = cast(PrwConfig, peft_config)
        resolve(model, config)
        self._targets: list[str] = config.target_modules
        known = candidates(model)
        planned = [name for name in known if name in self._in_state] or self._targets
        self._planned: list[str] = planned
        self._parts: dict[str, tuple[Part, ...]] = {
            name: parts_of_target(model, name, config.rows, config.layout) for name in planned
        }
        if config.granularity == "sample":
            refuse_causal(model, planned)
        settings = config.settings()
        settings.check_patterns(planned)
        noise = None if config.noise_seed is None else NoiseStream(config.noise_seed, config)
        self._pool = Pool(settings, tuple(config.experts), config.expert_ranks, noise)
        self._sites: dict[str, Site] = {}
        self._site_of = site_index(model, planned)
        self._kin: list[PrwAttention] = []
        warn_of_others(model, self.active_adapters)

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> Any:  # type: ignore[override]
        """Take exactly the modules that were found, where PEFT would take every path that ends like one."""
        path = plain_path(key)
        if path in self._targets and wrapped_by(self.model.get_submodule(key)) is None:
            return True
        excluded = check_target_module_exists(peft_config, path)
        return excluded if isinstance(excluded, _ExcludedModule) else False

    def _post_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        """Keep whole paths, which PEFT shortens to common ends where there are many."""
        cast(PrwConfig, config).target_modules = self._planned
        if self._pool.batch_sizes is not None:
            self._pool.batch_sizes.watch(model)
            self._pool.batch_sizes.watch(self)  # this wrapper calls the model's forward past its hooks

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keep experts in float32, or give them the base's dtype as PEFT does with a LoRA if asked to."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            cast_to_base(self.model, adapter_name)

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
        if not adaptable(target) or isinstance(unwrapped(parent), nn.MultiheadAttention):
            raise TargetError(
                f"{current_key} is a {type(target).__name__} in a {type(parent).__name__}; experts go on "
                "linear projections and on nn.MultiheadAttention as a whole."
            )
        current_key = plain_path(current_key)
        site_name = self._site_of.get(current_key, current_key)
        if site_name not in self._sites:
            self._sites[site_name] = Site(site_name, self._pool, adapter_name)
        site = self._sites[site_name]
        parent, target_name, target = inside_others(parent, target_name, target)
        layer = target if isinstance(target, PrwLinear) else wrap(target, current_key)
        layer.join(adapter_name, site, current_key, self._parts.get(current_key, WHOLE))
        refresh_training({current_key: layer}, adapter_name, cast(PrwConfig, peft_config))
        if isinstance(layer, PrwAttention) and layer is not target:
            self._kin.append(layer)
            layer.kin = self._kin
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)


def pool_weights(model: nn.Module, adapter: str, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Pick a pool's weights from those of the whole model."""
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
    """Step inside other adapters, so that their weights keep their names and their files load without prw."""
    while isinstance(target, BaseTunerLayer) and not isinstance(target, PrwLinear):
        inner = target.base_layer
        if not isinstance(inner, nn.Module) or isinstance(unwrapped(target), nn.MultiheadAttention):
            break
        parent, name, target = target, "base_layer", inner
    return parent, name, target


def wrap(target: nn.Module, path: str) -> PrwLinear:
    """Put a projection into a layer without experts.

    Raises:
        TargetError: if its widths cannot be told, or another adapter is around an nn.MultiheadAttention.
    """
    in_features, out_features = widths_of(target)
    if not in_features or not out_features:
        raise TargetError(
            f"cannot tell the input and output width of {path}, a {type(unwrapped(target)).__name__}; "
            "experts need both."
        )
    if not isinstance(unwrapped(target), nn.MultiheadAttention):
        return PrwLinear(target, in_features, out_features)
    if isinstance(target, BaseTunerLayer):
        raise TargetError(
            f"{path} is an nn.MultiheadAttention that a {type(target).__name__} of PEFT is around already. "
            "Inject the pool first, or leave that attention out with exclude=."
        )
    return PrwAttention(target, in_features, out_features)


def site_index(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Give every target's site; a key and a value of unequal input width stay apart."""
    index: dict[str, str] = {}
    for site, members in sites_of(names).items():
        widths = {in_features(model, name) for name in members}
        index.update({name: site if len(widths) == 1 else name for name in members})
    return index


def in_features(model: nn.Module, name: str) -> int | None:
    """Read the input width of a projection, None for other modules."""
    module = module_at(model, name)
    return widths_of(module)[0] if adaptable(module) else None


def refuse_causal(model: nn.Module, targets: Iterable[str]) -> None:
    """Refuse routing by the whole sample where a token must not see later ones.

    Raises:
        ConfigError: names the projection and what around it is causal.
    """
    for name in targets:
        parts = name.split(".")
        for depth in range(len(parts)):
            around = model.get_submodule(".".join(parts[:depth]))
            if causal(around):
                raise ConfigError(
                    "granularity='sample' routes by the mean of the whole sequence, but "
                    f"{type(around).__name__} around {name} is causal or generates token by token, and would "
                    "see the future in training. Use granularity='token'."
                )


def causal(module: nn.Module) -> bool:
    """Tell whether a module says that its tokens do not see later ones: transformers has three ways to."""
    can_generate = getattr(module, "can_generate", None)
    if callable(can_generate) and can_generate():
        return True
    decodes = getattr(getattr(module, "config", None), "is_decoder", False)
    return decodes is True or getattr(module, "is_causal", False) is True

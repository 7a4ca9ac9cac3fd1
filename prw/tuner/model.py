"""The PEFT tuner of PRW: finds the projections, wraps them, and ties those of one block to one site."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from functools import partial
from typing import Any, cast

from peft import PeftConfig
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _ExcludedModule,
    check_target_module_exists,
)
from torch import Tensor, nn

from prw.errors import ConfigError, TargetError
from prw.layers import WHOLE, NoiseStream, Part, Pool, Site
from prw.tuner.attention import PrwAttention
from prw.tuner.callers import refuse_without_settings
from prw.tuner.citizenship import cast_to_base, warn_of_others
from prw.tuner.config import PrwConfig
from prw.tuner.grouping import adaptable, candidates, sites_of, unwrapped, widths_of
from prw.tuner.growth import refresh_training
from prw.tuner.layer import PrwLinear
from prw.tuner.parts import parts_of_target
from prw.tuner.targets import STRUCTURAL, find_targets


class PrwModel(BaseTuner):
    """What `get_peft_model` wraps a model in, and what `inject_adapter_in_model` uses once and lets go."""

    prefix = "prw_"
    tuner_layer_cls = PrwLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # PEFT declares it so

    @classmethod
    def _get_adapter_state_dict(cls, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Select a pool's weights for saving, if its settings will be saved too."""
        refuse_without_settings()
        selected: dict[str, Tensor] = super()._get_adapter_state_dict(*args, **kwargs)
        return selected

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Name a saved weight by its projection alone, also where another adapter lies around the pool."""
        name: str = super()._remove_adapter_name_from_key(key, adapter_name)
        return re.sub(r"(\.base_layer)+(?=\.prw_)", "", name)

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        return peft_config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        """Turn "kv" and patterns into paths, and plan sites and parts, before PEFT walks the model."""
        config = cast(PrwConfig, peft_config)
        targets = "kv" if config.target_modules is None else config.target_modules
        if isinstance(targets, str) and targets in STRUCTURAL and targets != "kv":
            config.rows = targets
        self._targets: list[str] | None = None
        self._parts: dict[str, tuple[Part, ...]] = {}
        if targets != "all-linear":
            found = find_targets(model, targets, partial(left_in, config))
            refuse_missing_layers(config, found)
            self._targets = config.target_modules = found
            self._parts = {name: parts_of_target(model, name, config.rows, config.layout) for name in found}
        if config.granularity == "sample":
            refuse_causal(model, self._targets or [name for name, _ in model.named_modules() if name])
        settings = config.settings()
        settings.check_patterns(list(candidates(model)) if self._targets is None else self._targets)
        noise = None if config.noise_seed is None else NoiseStream(config.noise_seed, config)
        self._pool = Pool(settings, tuple(config.experts), config.expert_ranks, noise)
        self._sites: dict[str, Site] = {}
        self._site_of = site_index(model, config)
        self._kin: list[PrwAttention] = []
        warn_of_others(model, self.active_adapters)

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> Any:  # type: ignore[override]
        """Take exactly the modules that were found, where PEFT would take every path that ends like one."""
        found = check_target_module_exists(peft_config, key)
        return found if self._targets is None or key in self._targets or not found else False

    def _post_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        """Keep whole paths, which PEFT shortens to common ends where there are many."""
        if self._targets is not None:
            cast(PrwConfig, config).target_modules = self._targets

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


def site_index(model: nn.Module, peft_config: PrwConfig) -> dict[str, str]:
    """Give every target's site; a key and a value of unequal input width stay apart."""
    targets = peft_config.target_modules
    names = targets if isinstance(targets, list) else [name for name, _ in model.named_modules()]
    index: dict[str, str] = {}
    for site, members in sites_of(names).items():
        widths = {in_features(model, name) for name in members}
        index.update({name: site if len(widths) == 1 else name for name in members})
    return index


def in_features(model: nn.Module, name: str) -> int | None:
    """Read the input width of a projection, None for other modules."""
    module = model.get_submodule(name)
    return widths_of(module)[0] if adaptable(module) else None


def refuse_missing_layers(config: PrwConfig, found: Iterable[str]) -> None:
    """Refuse a layer index that no target has.

    Raises:
        TargetError: names the index.
    """
    layers = config.layers_to_transform
    for index in [layers] if isinstance(layers, int) else layers or []:
        asked = copy.copy(config)
        asked.layers_to_transform = [index]
        if not any(left_in(asked, name) for name in found):
            raise TargetError(f"no target is in a layer with index {index}, which layers_to_transform names.")


def left_in(config: PrwConfig, name: str) -> bool:
    """Tell whether exclude_modules, layers_to_transform and layers_pattern leave a path in, as in PEFT.

    Source: `check_target_module_exists` in peft.tuners.tuners_utils. It looks at layers only where a path is
    matched by its end, so it is asked about the path's last part; and it finds the index in "model.blocks.0"
    but not in "blocks.0", so it is asked about the path below a root.
    """
    asked = copy.copy(config)
    asked.target_modules = [name.rpartition(".")[2]]
    excluded = isinstance(check_target_module_exists(asked, name), _ExcludedModule)
    asked.exclude_modules = None
    return not excluded and bool(check_target_module_exists(asked, f"model.{name}"))


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

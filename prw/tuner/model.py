"""The PEFT tuner of PRW: finds the projections, wraps them, and ties those of one block to one site."""

from __future__ import annotations

from typing import Any, cast

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _get_in_out_features
from torch import nn

from prw.errors import ConfigError, TargetError
from prw.layers import Pool, Site
from prw.tuner.config import PrwConfig
from prw.tuner.growth import refresh_training
from prw.tuner.layer import PrwLinear
from prw.tuner.targets import adaptable, find_targets, sites_of


class PrwModel(BaseTuner):
    """What `get_peft_model` wraps a model in, and what `inject_adapter_in_model` uses once and lets go."""

    prefix = "prw_"
    tuner_layer_cls = PrwLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # PEFT declares it so

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        return peft_config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        """Turn "kv" and patterns into paths, and plan the sites, before PEFT walks the model."""
        config = cast(PrwConfig, peft_config)
        if config.granularity == "sample" and generates(model):
            raise ConfigError(
                f"granularity='sample' routes by the mean of the whole sequence, but {type(model).__name__} "
                "generates token by token and would see the future in training. Use granularity='token'."
            )
        targets = "kv" if config.target_modules is None else config.target_modules
        if targets != "all-linear":
            config.target_modules = find_targets(model, targets)
        self._pool = Pool(config.settings(), tuple(config.experts))
        self._sites: dict[str, Site] = {}
        self._site_of = site_index(model, config)

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
        if not adaptable(target):
            raise TargetError(
                f"{current_key} is a {type(target).__name__}; experts go on nn.Linear projections only."
            )
        site_name = self._site_of.get(current_key, current_key)
        if site_name not in self._sites:
            self._sites[site_name] = Site(site_name, self._pool, adapter_name)
        layer = target if isinstance(target, PrwLinear) else wrap(target)
        layer.join(adapter_name, self._sites[site_name], current_key)
        refresh_training({current_key: layer}, adapter_name, cast(PrwConfig, peft_config))
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)


def generates(model: nn.Module) -> bool:
    """Tell whether this is a transformers model that writes token by token."""
    can_generate = getattr(model, "can_generate", None)
    return callable(can_generate) and bool(can_generate())


def wrap(target: nn.Module) -> PrwLinear:
    """Put a projection into a layer without experts."""
    inner = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    in_features, out_features = _get_in_out_features(inner)
    if in_features is None or out_features is None:
        raise TargetError(
            f"cannot tell the input and output width of a {type(inner).__name__}; experts need both."
        )
    return PrwLinear(target, in_features, out_features)


def site_index(model: nn.Module, peft_config: PrwConfig) -> dict[str, str]:
    """Give every target's site; a key and a value of unequal input width stay apart."""
    targets = peft_config.target_modules
    names = targets if isinstance(targets, list) else [name for name, _ in model.named_modules()]
    index: dict[str, str] = {}
    for site, projections in sites_of(names).items():
        widths = {in_features(model, name) for name in projections}
        index.update({name: site if len(widths) == 1 else name for name in projections})
    return index


def in_features(model: nn.Module, name: str) -> int | None:
    """Read the input width of a projection, None for other modules."""
    module = model.get_submodule(name)
    inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    width: int | None = _get_in_out_features(inner)[0] if isinstance(inner, nn.Linear) else None
    return width

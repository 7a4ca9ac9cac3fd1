"""A pool beside other adapters of a model: their names, which of them are active, the dtype of the base."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from prw.errors import PoolError
from prw.tuner.config import PrwConfig
from prw.tuner.layer import PrwLinear

OTHERS = "Adapters that were active before this pool"
"""How the warning starts that a host is about to switch other adapters off."""


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
                "this model has. Give the new adapter another name, as with adapter_name='lora'."
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
    """Refuse a name under which the model has an adapter already.

    Raises:
        PoolError: says where that adapter is.
    """
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

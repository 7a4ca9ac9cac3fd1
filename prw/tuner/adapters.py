"""One name, one adapter: keeps a pool and another adapter of a model from sharing a name unawares."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from prw.errors import PoolError
from prw.tuner.config import PrwConfig


class AdapterConfigs(dict[str, PeftConfig]):
    """The configurations of a model's adapters, in which no other adapter takes the place of a pool's.

    PEFT writes a new adapter's configuration over an old one of the same name, and calls both "default" if
    nobody names them; the pool could then not be saved any more.

    A model that had adapters before its first pool may lie inside a `PeftModel`, which holds the dictionary
    from before. What is written here is written there too.
    """

    _before: dict[str, PeftConfig] | None = None

    @classmethod
    def around(cls, configs: dict[str, PeftConfig]) -> AdapterConfigs:
        """Give configurations that are kept so, in this dictionary or in a new one."""
        if isinstance(configs, cls):
            return configs
        new = cls(configs)
        new._before = configs
        return new

    def __setitem__(self, name: str, config: PeftConfig) -> None:
        """Note an adapter's configuration.

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
        """Forget an adapter's configuration."""
        super().__delitem__(name)
        if self._before is not None:
            self._before.pop(name, None)

    def pop(self, name: str, *default: Any) -> Any:
        """Forget an adapter's configuration, and give it or a default."""
        if self._before is not None:
            self._before.pop(name, None)
        return super().pop(name, *default)

    def update(self, *others: Any, **named: PeftConfig) -> None:
        """Note several configurations.

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

"""The hold on a model's pool that every part of the handle stands on: where it is, what it says of itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from prw.config import PoolSettings
from prw.layers import Pool, SiteRecord
from prw.tuner import (
    PrwConfig,
    PrwLinear,
    TrainedBefore,
    find_pool,
    inner_model,
    note_beside,
    pool_layers,
    refuse_no_model,
)

EMPTY = 'the pool is empty, so nothing can train or be routed: call weave.add_expert("name") first.'


class Hold:
    """Finds the pool of a model anew at every question, since it may have been ejected meanwhile."""

    def __init__(
        self, model: nn.Module, adapter: str = "default", trained_before: TrainedBefore | None = None
    ) -> None:
        """Take hold of the pool that a model has.

        Args:
            model: The model, or what torch.compile or a parallel wrapper made of it.
            adapter: Name of the PEFT adapter that the pool is.
            trained_before: Which of the base trained before injection, for `eject`; None asks prw.

        Raises:
            PoolError: if it has none under that adapter name.
            TargetError: if it is no torch model.
        """
        refuse_no_model(model)
        self.model = inner_model(model)
        self.adapter = adapter
        self._trained_before = trained_before
        self._layers()

    @property
    def pool(self) -> Pool:
        """The state that the sites share: settings, names, and what the `with` blocks ask for."""
        return find_pool(self.model, self.adapter)

    @property
    def config(self) -> PrwConfig:
        """The PEFT configuration of the pool."""
        find_pool(self.model, self.adapter)  # says so where there is no pool any more
        configs: Any = self.model.peft_config
        config: PrwConfig = configs[self.adapter]
        return config

    @property
    def settings(self) -> PoolSettings:
        """The pool's settings."""
        return self.pool.settings

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts, oldest first."""
        return self.pool.experts

    @property
    def frozen(self) -> bool:
        """Whether the newest expert is frozen too, as after the end of its stage."""
        return self.config.newest_frozen

    @property
    def sites(self) -> tuple[SiteRecord, ...]:
        """The attention blocks with experts, in the model's order."""
        sites = {id(site): site for site in (layer.sites[self.adapter] for layer in self._layers().values())}
        return tuple(site.describe() for site in sites.values())

    def _note_stage_end(self) -> None:
        """Note what trained beside the newest expert, if that goes on training until now."""
        if self.experts and not self.frozen:
            note_beside(self.model, self.adapter, self.config)

    def _layers(self) -> dict[str, PrwLinear]:
        return pool_layers(self.model, self.adapter)

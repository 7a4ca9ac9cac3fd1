"""The handle of a model with experts: inject, grow, record, recall, save, eject. It delegates downwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prw.config import PoolSettings
from prw.errors import ConfigError, PoolError
from prw.layers import Pool, SiteRecord
from prw.routing import Routing
from prw.storage import (
    load_pool,
    place_lora,
    pool_parameters,
    pool_state,
    read_lora,
    write_folder,
    write_lora,
)
from prw.tuner import (
    PrwConfig,
    PrwLinear,
    TrainedBefore,
    freeze_newest,
    grow,
    limited,
    pool_layers,
    put_in,
    refresh_training,
    remove,
    take_out,
    trainable_parameters,
)

EMPTY = 'the pool is empty, so nothing can train or be routed: call weave.add_expert("name") first.'


class Weave:
    """The handle of a model that has a pool of experts; `prw.inject` and `prw.load` give one.

    `Weave(model)` gives one for a model that got its pool through PEFT, transformers or diffusers.

    Attributes:
        model: The model, changed in place.
        adapter: Name of the PEFT adapter that the pool is.
    """

    def __init__(
        self, model: nn.Module, adapter: str = "default", trained_before: TrainedBefore | None = None
    ) -> None:
        """Take hold of the pool that a model has.

        Args:
            model: The model.
            adapter: Name of the PEFT adapter that the pool is.
            trained_before: Which of the base trained before injection, for `eject`; None asks prw.

        Raises:
            PoolError: if it has none under that adapter name.
        """
        self.model = model
        self.adapter = adapter
        self._trained_before = trained_before
        self._layers()

    @property
    def pool(self) -> Pool:
        """The state that the sites share: settings, names, and what the `with` blocks ask for."""
        return next(iter(self._layers().values())).sites[self.adapter].pool

    @property
    def config(self) -> PrwConfig:
        """The PEFT configuration of the pool."""
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
        sites = dict.fromkeys(layer.sites[self.adapter] for layer in self._layers().values())
        return tuple(site.describe() for site in sites)

    def add_expert(self, name: str, init: str | None = None) -> None:
        """Freeze what is there and add an expert that trains.

        Args:
            name: Name of the expert; usually that of its stage.
            init: None or "zero" starts at zero output; a veteran's name starts from a copy of its A and B.

        Raises:
            ConfigError: if the name cannot be used or is taken.
            PoolError: if `init` names no expert.
        """
        grow(self._layers(), self.adapter, self.config, name, init)

    def freeze(self) -> None:
        """Freeze the newest expert too: its stage has ended, and nothing trains until an expert is added."""
        freeze_newest(self._layers(), self.adapter, self.config)

    def remove_expert(self, name: str) -> None:
        """Take an expert out of the pool. If it was the newest, nothing trains until an expert is added.

        Raises:
            PoolError: if the pool has no such expert.
        """
        remove(self._layers(), self.adapter, self.config, name)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """List exactly what an optimiser should get; empty after `freeze()`.

        Raises:
            PoolError: if the pool has no experts, or is switched off or loaded for inference.
        """
        if not self.experts:
            raise PoolError(EMPTY)
        return trainable_parameters(self._layers(), self.adapter, self.config)

    @contextmanager
    def record(self) -> Iterator[Routing]:
        """Collect the decisions of the forwards inside a `with` block, each once, recomputed ones not at all.

        Raises:
            PoolError: if the pool has no experts, or is being recorded already.
        """
        if not self.experts:
            raise PoolError(EMPTY)
        with self.pool.recording() as routing:
            yield routing

    @contextmanager
    def route_only(self, mask: Tensor) -> Iterator[None]:
        """Route only some tokens inside a `with` block; the others get the base.

        Under gradient checkpointing, backward() must happen inside the block too.

        Args:
            mask: Which tokens are routed, bool of shape [batch, tokens]; the tokens that every site sees.

        Raises:
            ConfigError: if the mask is not of bools.
        """
        if mask.dtype != torch.bool:
            raise ConfigError(f"route_only takes a mask of bools, True where routed; got {mask.dtype}.")
        with self.pool.narrowed(routed=mask):
            yield

    @contextmanager
    def as_of(self, name: str) -> Iterator[None]:
        """Use the pool as it was when an expert's stage ended, inside a `with` block: bit for bit.

        Raises:
            PoolError: if there is no such expert, or veterans' router vectors go on training.
        """
        if self.settings.train_veteran_gates:
            raise PoolError(
                "with train_veteran_gates=True the router of an earlier stage has been trained on, so as_of "
                "cannot give that stage's model. Load its own checkpoint, or keep veteran gates frozen."
            )
        with self.pool.narrowed(size=self.pool.index(name) + 1):
            yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Use the model without experts inside a `with` block."""
        with self.pool.narrowed(disabled=True):
            yield

    def save_pretrained(self, path: str | Path) -> None:
        """Save the pool as a PEFT folder: adapter_config.json, adapter_model.safetensors, README.md.

        The folder appears whole or not at all; other files in it are kept.

        Raises:
            StorageError: if `path` is a file.
            UnsupportedError: if the configuration has `modules_to_save`, which only PEFT saves.
        """
        write_folder(Path(path), self.config, pool_state(self._layers(), self.adapter))

    def export_lora(self, name: str, path: str | Path) -> None:
        """Save one expert as a plain PEFT LoRA folder, for use without prw.

        The router is not part of it: the LoRA acts on every token with weight one, where the pool weighs the
        expert by its probability (unless `gate="unit"`) and only where the router chose it.

        Raises:
            PoolError: if the pool has no such expert.
        """
        write_lora(Path(path), self._layers(), self.adapter, name, self.config)

    def import_lora(self, path: str | Path, name: str) -> None:
        """Add a plain PEFT LoRA as an expert with frozen A and B; its router vectors train.

        Raises:
            StorageError: if it is no plain LoRA or does not fit; nothing was changed then.
            ConfigError: if the name cannot be used or is taken.
        """
        layers = self._layers()
        pairs = read_lora(Path(path), layers, self.settings, self.adapter)
        self.add_expert(name)
        place_lora(pairs, layers, self.adapter, self.pool.index(name))
        self.config.imported = [*self.config.imported, name]
        refresh_training(layers, self.adapter, self.config)

    def eject(self) -> None:
        """Take the pool out: every projection is the very module that was there before injection.

        Raises:
            UnsupportedError: if PEFT wrapped the model.
        """
        self._layers()
        take_out(self.model, self.adapter, self._trained_before)

    def summary(self) -> str:
        """Describe the pool in a few lines: sites, experts, sizes, what trains."""
        parameters, settings = pool_parameters(self._layers(), self.adapter).values(), self.settings
        training = sum(p.numel() for p in parameters if p.requires_grad)
        return (
            f"{len(self.experts)} experts at {len(self.sites)} sites of {type(self.model).__name__}\n"
            f"experts: {', '.join(self.experts) or 'none yet'}{' (all frozen)' if self.frozen else ''}\n"
            f"rank {settings.rank}, scale {settings.scale:g}, {settings.gate} gate, {settings.granularity}s\n"
            f"parameters: {sum(p.numel() for p in parameters):,} in the pool, {training:,} train"
        )

    def _layers(self) -> dict[str, PrwLinear]:
        return pool_layers(self.model, self.adapter)


def inject(
    model: nn.Module,
    target: str | Iterable[str] = "kv",
    experts: Iterable[str] = (),
    *,
    exclude: str | Iterable[str] = (),
    layers: int | Iterable[int] | None = None,
    layout: str | None = None,
    adapter: str = "default",
    **settings: Any,
) -> Weave:
    """Give a model a pool of experts, in place; what it computes stays the same bit for bit.

    Args:
        model: Any model with attention; see docs/supported-models.md.
        target: "kv", "k" or "v", or names, globs or regular expressions of projections.
        experts: Names of experts to start with; usually none.
        exclude: Projections to leave out, or modules with all below them: names, globs, patterns.
        layers: Only layers with these indices.
        layout: How a projection that makes keys and values is laid out, where the model does not tell.
        adapter: Name of the PEFT adapter.
        **settings: Fields of `PoolSettings`: rank, alpha, granularity, gate, share, noise, ...

    Returns:
        The handle. The base's parameters are frozen; `eject()` undoes that too.

    Raises:
        ConfigError: if a setting is unknown or cannot be used, or `experts` is no list of names.
        TargetError: if a target, `exclude` or `layers` matches nothing; lists what is there.
        PoolError: if the model has an adapter of that name already.
    """
    PoolSettings.checked(**settings)
    names: Any
    targets, names = (value if isinstance(value, str) else list(value) for value in (target, experts))
    settings = {"layout": layout, **limited(model, exclude, layers), **settings}
    config = PrwConfig(target_modules=targets, experts=names, **settings)
    return Weave(model, adapter, put_in(model, config, adapter))


def load(model: nn.Module, path: str | Path, *, adapter: str = "default") -> Weave:
    """Give a model the pool of a folder, or put an earlier stage into the larger pool it has.

    Args:
        model: The base model, or one that has a pool whose first experts are the folder's.
        path: Folder written by `save_pretrained`.
        adapter: Name of the PEFT adapter.

    Raises:
        StorageError: if the folder is missing, damaged, foreign or does not fit; the model is untouched then.
    """
    return Weave(model, adapter, load_pool(model, Path(path), adapter))

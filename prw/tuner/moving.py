"""Paths of modules that have moved since a folder was saved: hosts say where their old names have gone."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from prw.tuner.grouping import candidates
from prw.tuner.wrapping import PEFT_PREFIX, inner_model, plain_path

if TYPE_CHECKING:
    from prw.tuner.config import PrwConfig

Rename = Callable[[str], str]


def paths_in(weights: Iterable[str]) -> set[str]:
    """List the projections that a pool's saved weights are of."""
    names = (plain_path(name).rpartition(".prw_")[0] for name in weights if ".prw_" in name)
    return {name.removeprefix(PEFT_PREFIX) for name in names}


def moved_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name a pool's saved weights by where their projections are now."""
    moved = moved_paths(model, paths_in(weights))
    found = {}
    for name, weight in weights.items():
        path, _, rest = name.removeprefix(PEFT_PREFIX).rpartition(".prw_")
        found[f"{PEFT_PREFIX}{moved[path]}.prw_{rest}" if path in moved else name] = weight
    return found


def moved_paths(model: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """Find where projections of a saved pool are now, by what the model says of its own old names.

    Args:
        model: The model.
        paths: Paths that were saved.

    Returns:
        Old path to new path, for those that are not in the model under their old path.
    """
    known = candidates(model)
    unknown = [path for path in paths if path not in known]
    renames = list(renames_of(inner_model(model))) if unknown else []
    moved = {path: renamed(path, renames) for path in unknown}
    return {old: new for old, new in moved.items() if new in known}


def renamed(path: str, renames: Iterable[Rename]) -> str:
    """Apply a host's renames to the path of a projection; they are written for the names of weights."""
    name = f"{path}.weight"
    for rename in renames:
        name = rename(name)
    return name.removesuffix(".weight")


def renames_of(model: nn.Module) -> Iterator[Rename]:
    """Go through what a model says of its old names: an attribute of its own, or transformers' registry.

    Source: `PeftModel.from_pretrained` reads the attribute as `key_mapping`, and `load_adapter` of
    transformers asks `get_model_conversion_mapping`, which PEFT hands on where transformers has it.
    """
    patterns = getattr(model, "_checkpoint_conversion_mapping", None)
    if isinstance(patterns, Mapping) and patterns:
        yield partial(first_of, patterns)
    if not hasattr(getattr(model, "config", None), "model_type"):
        return
    with suppress(ImportError):  # transformers 4 has no registry
        registry = import_module("peft.utils.transformers_weight_conversion")
        for conversion in registry.get_model_conversion_mapping(model):
            if type(conversion).__name__ == "WeightRenaming":
                yield partial(by_registry, conversion)


def first_of(patterns: Mapping[str, str], name: str) -> str:
    """Apply the first pattern that fits, as PEFT does."""
    for pattern, replacement in patterns.items():
        changed, count = re.subn(pattern, replacement, name)
        if count:
            return changed
    return name


def by_registry(conversion: Any, name: str) -> str:
    """Apply a renaming of transformers' registry."""
    changed: str = conversion.rename_source_key(name)[0]
    return changed


def follow(config: PrwConfig, moved: Mapping[str, str]) -> PrwConfig:
    """Give a configuration with the new paths in the place of the old ones.

    Args:
        config: The configuration; it is not changed.
        moved: Old path to new path.
    """
    new = copy.copy(config)
    for name in ("target_modules", "exclude_modules"):
        paths = getattr(new, name)
        if isinstance(paths, list | tuple | set):
            setattr(new, name, [moved.get(path, path) for path in paths])
    anchored = {f"^{re.escape(old)}": f"^{re.escape(path)}" for old, path in moved.items()}
    new.expert_ranks = {
        expert: {anchored.get(key, key): rank for key, rank in pattern.items()}
        for expert, pattern in new.expert_ranks.items()
    }
    return new

"""Paths of modules and weights: without wrappers and adapters, and after a host has renamed its modules."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from prw.errors import UnsupportedError
from prw.tuner.config import PrwConfig

INSIDE = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Where torch.compile, torch's checkpoint wrapper and FSDP1 keep the module that they wrap. Unlike DDP they
show its attributes, so that its path without these parts leads to it as well."""
PARAMETERS_FIXED = ("DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")
"""Wrappers that note at their start which parameters they synchronise, and so would leave new ones out."""

PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the name of every weight, in its files and around a model."""
AROUND = re.compile(r"(\.base_layer)+(?=\.(?:prw_|out_proj\.|[^.]+$))")
"""Where adapters keep a projection, or an nn.MultiheadAttention with its `out_proj`, in the name of a weight.
Another module that a model calls `base_layer` is part of the path."""

Rename = Callable[[str], str]


def base_path(weight: str) -> str:
    """Return the name of a weight without the wrappers and adapters around its projection."""
    return AROUND.sub("", plain_path(weight))


def plain_path(path: str) -> str:
    """Return the path that a module has without wrappers; it leads to the module with them too."""
    return ".".join(part for part in path.split(".") if part not in INSIDE)


def inner_model(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers, like those of torch.compile and DataParallel, or the model itself."""
    while (inner := wrapped_by(model)) is not None:
        model = inner
    return model


def module_at(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a path, without wrappers around it."""
    return inner_model(model.get_submodule(path))


def wrapped_by(model: nn.Module) -> nn.Module | None:
    """Return the module inside a wrapper; None if it is not a known wrapper."""
    names: tuple[str, ...] = INSIDE
    if isinstance(model, DataParallel | DistributedDataParallel) or is_fixed(model):
        names = (*INSIDE, "module")
    return next((model._modules[name] for name in names if name in model._modules), None)


def is_fixed(model: nn.Module) -> bool:
    """Return whether a wrapper would not synchronise parameters that come later."""
    return any(kind.__name__ in PARAMETERS_FIXED for kind in type(model).__mro__)


def refuse_fixed(model: nn.Module) -> None:
    """Refuse a model whose wrapper has noted its parameters already."""
    outer: nn.Module | None = model
    while outer is not None:
        if is_fixed(outer):
            raise UnsupportedError(
                f"the model is wrapped by {type(outer).__name__}, which noted at its start which parameters "
                "it synchronises and would leave new experts out. Inject the pool and add its experts first, "
                "then wrap the model."
            )
        outer = wrapped_by(outer)


# ------------------------------------------------------------------------------------------ renamed modules


def paths_in(weights: Iterable[str]) -> set[str]:
    """List the paths of the projections that a pool's saved weights belong to."""
    names = (plain_path(name).rpartition(".prw_")[0] for name in weights if ".prw_" in name)
    return {name.removeprefix(PEFT_PREFIX) for name in names}


def with_current_names(weights: Mapping[str, Tensor], renamed: Mapping[str, str]) -> dict[str, Tensor]:
    """Name a pool's saved weights after the present paths of their projections; see `current_paths`."""
    found = {}
    for name, weight in weights.items():
        path, _, rest = name.removeprefix(PEFT_PREFIX).rpartition(".prw_")
        found[f"{PEFT_PREFIX}{renamed[path]}.prw_{rest}" if path in renamed else name] = weight
    return found


def current_paths(model: nn.Module, saved: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Find where the projections of a saved pool are now, by what the model says of its own old names.

    Args:
        model: The model.
        saved: Paths that were saved.
        known: Paths of the layers that can carry experts.

    Returns:
        Saved path to present path, for those that the model no longer has under the saved path.
    """
    unknown = [path for path in saved if path not in known]
    renames = list(renames_of(inner_model(model))) if unknown else []
    new = {path: renamed_by(path, renames) for path in unknown}
    return {old: path for old, path in new.items() if path in known}


def renamed_by(path: str, renames: Iterable[Rename]) -> str:
    """Apply a host's renames to the path of a projection; they are written for the names of weights."""
    name = f"{path}.weight"
    for rename in renames:
        name = rename(name)
    return name.removesuffix(".weight")


def renames_of(model: nn.Module) -> Iterator[Rename]:
    """Iterate over what a model says of its old names: an attribute of its own, or transformers' registry.

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


def with_current_paths(config: PrwConfig, renamed: Mapping[str, str]) -> PrwConfig:
    """Return a copy of a configuration with present paths in the place of saved ones; see `current_paths`."""
    new = copy.copy(config)
    for name in ("target_modules", "exclude_modules"):
        paths = getattr(new, name)
        if isinstance(paths, list | tuple | set):
            setattr(new, name, [renamed.get(path, path) for path in paths])
    anchored = {f"^{re.escape(old)}": f"^{re.escape(path)}" for old, path in renamed.items()}
    new.expert_ranks = {
        expert: {anchored.get(key, key): rank for key, rank in pattern.items()}
        for expert, pattern in new.expert_ranks.items()
    }
    return new

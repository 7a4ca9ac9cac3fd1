"""Turns what a configuration asks for, as "kv" or "all-linear", into the paths of one model's projections."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from peft.tuners.tuners_utils import (
    _ExcludedModule,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from torch import nn

from prw.errors import ConfigError, TargetError, first_few
from prw.tuner.config import ALL_LINEAR, EVERY_ROW, PrwConfig
from prw.tuner.grouping import candidates, replaced
from prw.tuner.moving import follow, moved_paths
from prw.tuner.naming import role_of, split
from prw.tuner.targets import STRUCTURAL, find_targets, is_bypassed
from prw.tuner.wrapping import inner_model, module_at, plain_path


def resolve(model: nn.Module, config: PrwConfig) -> None:
    """Write into a configuration which projections of a model it means, and what was asked for.

    Args:
        model: The model.
        config: The configuration of the pool that the model gets; of no other model.

    Raises:
        TargetError: if something that was asked for is not in the model, or cannot carry experts.
        ConfigError: if options contradict each other.
    """
    saved = saved_paths(model, config)
    if saved is None:
        asked = "kv" if config.target_modules is None else config.target_modules
        config.resolved_from = asked if isinstance(asked, str) else sorted(asked)
        if asked in STRUCTURAL and asked != "kv":
            config.rows = asked
        config.target_modules = found(model, asked, config)
        refuse_missing_layers(config, config.target_modules)
        return
    left = passed_over(model, config)
    if left:
        warnings.warn(
            f"the saved pool does not cover this model: {passed_over_note(left, config)}. Likely it is of a "
            "smaller base model; the projections named stay without experts.",
            stacklevel=2,
        )
    config.target_modules = found(model, saved, config)


def saved_paths(model: nn.Module, config: PrwConfig) -> list[str] | None:
    """Give the paths of a configuration that was resolved for a model before, under their names in this one.

    Its other paths, of excluded projections and of ranks, are brought up to date too.

    Returns:
        The paths, or None if the configuration asks for something that is yet to be found.
    """
    paths = config.target_modules
    if isinstance(paths, str) or not paths:
        return None
    excluded = config.exclude_modules if isinstance(config.exclude_modules, list) else []
    moved = moved_paths(model, [*paths, *excluded])
    if moved:
        new = follow(config, moved)
        config.target_modules, config.exclude_modules = new.target_modules, new.exclude_modules
        config.expert_ranks = new.expert_ranks
    known = candidates(model)
    whole = [plain_path(path) for path in config.target_modules]
    return whole if config.resolved_from is not None and known.keys() >= set(whole) else None


def found(model: nn.Module, asked: str | Iterable[str], config: PrwConfig) -> list[str]:
    """List the projections that something asked for means, in the model's order, as the other options allow.

    Raises:
        TargetError: if there are none, or a name that was asked for cannot be served.
        ConfigError: if a layout is given for whole layers.
    """
    if asked == ALL_LINEAR:
        asked, config.rows = linear_layers(model, config), EVERY_ROW
    if config.rows == EVERY_ROW and config.layout is not None:
        raise ConfigError(
            f"layout={config.layout!r} says which rows are keys and values, and target='all-linear' adapts "
            "every row. Leave layout out, or name the projections in target."
        )
    names = find_targets(model, asked, partial(left_in, config))
    return [name for name in names if not is_excluded(config, name)]


def linear_layers(model: nn.Module, config: PrwConfig) -> list[str]:
    """List all linear layers that PEFT's "all-linear" means: not the output head, nor a classifier's.

    Layers that their block never calls, since it reads their weight or a fused layer took their place, are
    left out.

    Raises:
        TargetError: if a layer cannot carry experts and is not excluded, or no layer is left.
    """
    asked = copy.copy(config)
    asked.target_modules = ALL_LINEAR
    _maybe_include_all_linear_layers(asked, inner_model(model))  # writes into the copy
    names = {plain_path(name) for name in asked.target_modules}
    wanted = {name for name in names if left_in(config, name)}
    known = candidates(model)
    odd = sorted(wanted.difference(known))
    if odd:
        kind = type(module_at(model, odd[0].rpartition(".")[0])).__name__
        raise TargetError(
            f"target='all-linear' means {odd[0]} too, which cannot carry experts: it is a part of a {kind} "
            f"({len(odd)} such layers). Leave it out with exclude={odd[0].rpartition('.')[2]!r}, or name the "
            "projections in target."
        )
    called = [name for name in known if name in wanted and is_called(model, name)]
    if not called:
        raise TargetError(
            f"target='all-linear' means {len(names)} layers of {type(model).__name__}, and exclude_modules, "
            "layers_to_transform and layers_pattern leave none of them. Change one of those."
        )
    return called


def is_called(model: nn.Module, name: str) -> bool:
    """Tell whether a block calls a projection, and no other layer took its place."""
    block, last = split(name)
    return not is_bypassed(model, name) and not replaced(module_at(model, block), role_of(last))


def passed_over(model: nn.Module, config: PrwConfig) -> list[str]:
    """List the projections that what was once asked for means in this model, and the saved paths leave out.

    Args:
        model: The model.
        config: A saved configuration; one that was never resolved, or is of other paths, leaves out nothing.
    """
    asked, paths = config.resolved_from, config.target_modules
    if asked is None or isinstance(paths, str) or not candidates(model).keys() >= set(paths or ()):
        return []
    with suppress(TargetError):
        return [name for name in found(model, asked, copy.copy(config)) if name not in set(paths)]
    return []


def passed_over_note(left: list[str], config: PrwConfig) -> str:
    """Say in words what a saved pool leaves out."""
    return (
        f"it was made with target={config.resolved_from!r}, which means {len(left)} more projections here "
        f"({first_few(left)})"
    )


def refuse_outside(model: nn.Module, config: PrwConfig) -> None:
    """Refuse projections that are named by their whole path and lie outside the layers that are asked for.

    PEFT takes such a name whatever layers_to_transform says, and folders of earlier versions rely on that.

    Raises:
        TargetError: names the first one.
    """
    targets = config.target_modules
    whole = set(targets if isinstance(targets, list) else ()) & candidates(model).keys()
    for name in sorted(whole):
        if not in_layers(config, name):
            raise TargetError(
                f"target names {name}, which is in none of the layers that layers="
                f"{config.layers_to_transform!r} asks for. Leave out one of the two."
            )


def refuse_missing_layers(config: PrwConfig, names: Iterable[str]) -> None:
    """Refuse a layer index that no target has.

    Raises:
        TargetError: names the index.
    """
    layers = config.layers_to_transform
    for index in [layers] if isinstance(layers, int) else layers or []:
        asked = copy.copy(config)
        asked.layers_to_transform = [index]
        if not any(in_layers(asked, name) for name in names):
            raise TargetError(f"no target is in a layer with index {index}, which layers_to_transform names.")


def left_in(config: PrwConfig, name: str) -> bool:
    """Tell whether exclude_modules, layers_to_transform and layers_pattern leave a path in, as in PEFT."""
    return not is_excluded(config, name) and in_layers(config, name)


def is_excluded(config: PrwConfig, name: str) -> bool:
    """Tell whether exclude_modules, or modules_to_save, leaves a path out, as in PEFT."""
    return isinstance(check_target_module_exists(asking_for(config, name), name), _ExcludedModule)


def in_layers(config: PrwConfig, name: str) -> bool:
    """Tell whether a path is in one of the layers that layers_to_transform and layers_pattern ask for.

    Source: `check_target_module_exists` in peft.tuners.tuners_utils. It looks at layers only where a path is
    matched by its end, so it is asked about the path's last part; and it finds the index in "model.blocks.0"
    but not in "blocks.0", so it is asked about the path below a root.
    """
    asked = asking_for(config, name)
    asked.exclude_modules = asked.modules_to_save = None
    return bool(check_target_module_exists(asked, f"model.{name}"))


def asking_for(config: PrwConfig, name: str) -> PrwConfig:
    """Copy a configuration and let it ask for every path that ends like one."""
    asked = copy.copy(config)
    asked.target_modules = [name.rpartition(".")[2]]
    return asked

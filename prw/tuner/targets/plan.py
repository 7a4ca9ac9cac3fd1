"""The plan of a pool: what a configuration asks for becomes a list of sites, in one pass over the model."""

from __future__ import annotations

import copy
import fnmatch
import functools
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from peft.tuners.tuners_utils import (
    _ExcludedModule,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from torch import Tensor, nn

from prw.errors import ConfigError, TargetError, first_few
from prw.kernels import OutputSlice
from prw.tuner.config import ALL_LINEAR, BY_STRUCTURE, PrwConfig
from prw.tuner.module_paths import (
    current_paths,
    inner_model,
    module_at,
    paths_in,
    plain_path,
    with_current_names,
    with_current_paths,
)
from prw.tuner.targets.blocks import (
    Group,
    find_by_structure,
    group_pairs,
    is_bypassed,
    is_replaced,
    site_name,
)
from prw.tuner.targets.layouts import output_slices
from prw.tuner.targets.projections import Known, Projection, nothing_found, projections_of, unwrapped


class SitePlan(NamedTuple):
    """A site that is to be made.

    Attributes:
        name: Path of the attention block, or of the only projection.
        slices: Path of each projection, key first, and the output slices that experts add to there.
    """

    name: str
    slices: Mapping[str, Mapping[str, OutputSlice | None]]


class PoolPlan(NamedTuple):
    """What is to be injected into a model.

    Attributes:
        config: A copy of the configuration, with the model's own paths in `target_modules`.
        sites: The site of each projection by the projection's path, in the model's order.
        asked: Paths of the projections that the configuration asks for; `sites` may have others, if a
            state dict does.
    """

    config: PrwConfig
    sites: Mapping[str, SitePlan]
    asked: frozenset[str]


# ---------------------------------------------------------------------------------------------- the one pass


def plan_pool(model: nn.Module, config: PrwConfig, in_state: Collection[str] = ()) -> PoolPlan:
    """Decide which projections get experts, on which rows of their output, and which share a site.

    Args:
        model: The model; it is not changed.
        config: What is asked for, or a saved configuration with the paths that it once meant.
        in_state: Paths of the projections in a state dict that is to be loaded; these are taken instead.

    Raises:
        TargetError: if something that is asked for is not in the model, or cannot carry experts.
        ConfigError: if a setting does not go with the model.
    """
    known = projections_of(model)
    config = with_present_names(model, known, copy.deepcopy(config))
    saved = saved_paths(known, config)
    if saved is not None:
        warn_of_passed_over(model, known, config)
        groups = find_groups(model, known, saved, config)
    else:
        asked = "kv" if config.target_modules is None else config.target_modules
        config.resolved_from = asked if isinstance(asked, str) else sorted(asked)
        config.rows = config.rows_of(asked)
        groups = find_groups(model, known, asked, config)
        refuse_missing_layers(config, groups)
    asked_for = frozenset(projection.path for group in groups for projection in group)
    if not known.keys().isdisjoint(in_state):
        groups = group_pairs(known[path] for path in known if path in in_state)
    by_path = {path: site for site in plan_sites(groups, config.rows, config.layout) for path in site.slices}
    sites = {path: by_path[path] for path in known if path in by_path}
    config.target_modules = list(sites)
    config.settings().check_patterns(config.target_modules)
    if config.granularity == "sample":
        refuse_causal(model, config.target_modules)
    return PoolPlan(config, sites, asked_for)


def with_present_names(model: nn.Module, known: Known, config: PrwConfig) -> PrwConfig:
    """Give a configuration the present paths of modules that the host has renamed since it was saved."""
    if isinstance(config.target_modules, str) or not config.target_modules:
        return config
    excluded = config.exclude_modules if isinstance(config.exclude_modules, list) else []
    renamed = current_paths(model, [*config.target_modules, *excluded], known)
    return with_current_paths(config, renamed) if renamed else config


def rename_saved(
    model: nn.Module, config: PrwConfig, weights: Mapping[str, Tensor]
) -> tuple[PrwConfig, dict[str, Tensor]]:
    """Return a saved configuration and its weights with the paths that this model has now.

    The targets then name every projection that the weights belong to: earlier versions put experts on paths
    that merely end like a target, and ignored layers_to_transform.
    """
    paths, config = paths_in(weights), copy.copy(config)
    if isinstance(config.target_modules, list | tuple | set):
        missing = sorted(paths.difference(config.target_modules))
        config.target_modules = [*config.target_modules, *missing]
    renamed = current_paths(model, paths, projections_of(model))
    return with_current_paths(config, renamed), with_current_names(weights, renamed)


def saved_paths(known: Known, config: PrwConfig) -> list[str] | None:
    """Return the paths of a configuration that was planned for a model like this one; None if it was not."""
    if config.resolved_from is None or isinstance(config.target_modules, str) or not config.target_modules:
        return None
    paths = [plain_path(path) for path in config.target_modules]
    return paths if known.keys() >= set(paths) else None


def find_groups(model: nn.Module, known: Known, asked: str | Iterable[str], config: PrwConfig) -> list[Group]:
    """Find the projections that a target means, as far as the configuration's other options allow them.

    Args:
        model: The model.
        known: Its layers that can carry experts.
        asked: "kv", "k", "v", "all-kv" or "all-linear"; or module names (whole, or the end of a path), globs
            or regular expressions. A whole name is taken whatever `layers_to_transform` says.
        config: Says what is excluded and which layers are meant.

    Raises:
        TargetError: if it means nothing that can carry experts; lists what the model has.
    """
    if asked == ALL_LINEAR:
        groups = group_pairs(linear_layers(model, known, config))
    elif isinstance(asked, str) and asked in BY_STRUCTURE:
        groups = find_by_structure(known.values(), asked)
    else:
        groups = group_pairs(matching(model, known, [asked] if isinstance(asked, str) else list(asked)))
    if not groups:
        refuse_attention_itself(model)
        kind = "linear layer" if asked == ALL_LINEAR else "attention block"
        raise TargetError(nothing_found(f"target={asked!r} found no {kind}", model, known))
    whole = {asked} if isinstance(asked, str) else set(asked)
    allowed = [tuple(one for one in group if is_allowed(config, one.path, whole)) for group in groups]
    chosen = [group for group in allowed if group]
    if not chosen:
        paths = [projection.path for group in groups for projection in group]
        raise TargetError(
            f"{len(paths)} modules match the target ({first_few(paths)}), and exclude_modules, "
            "layers_to_transform and layers_pattern leave none of them. Change one of those."
        )
    if asked in BY_STRUCTURE:  # blocks that call none of their projections are left out, unless all are such
        chosen = [group for group in chosen if not all(map(is_bypassed, group))] or chosen
    refuse_unusable(model, chosen)
    return chosen


def plan_sites(groups: Iterable[Group], letters: str, layout: str | None) -> list[SitePlan]:
    """Make a site of every group; a key and a value with inputs of different widths are a site each."""
    sites: dict[str, SitePlan] = {}
    for group in groups:
        one_width = len({projection.in_features for projection in group}) == 1
        for members in [group] if one_width else [(projection,) for projection in group]:
            name = site_name(members)
            name = members[0].path if name in sites else name
            slices = {projection.path: output_slices(projection, letters, layout) for projection in members}
            sites[name] = SitePlan(name, slices)
    return list(sites.values())


# ----------------------------------------------------------------------------------------- what is asked for


def matching(model: nn.Module, known: Known, entries: list[str]) -> list[Projection]:
    """List the projections that names, globs or patterns match, in the model's order; each must match one."""
    if not entries:
        raise TargetError(nothing_found("the list of targets is empty", model, known))
    chosen: set[str] = set()
    for entry in entries:
        hits = [entry] if entry in known else [path for path in known if matches(path, entry)]
        if not hits:
            raise TargetError(
                nothing_found(f"target {entry!r} matched nothing that can carry experts", model, known)
            )
        chosen.update(hits)
    return [projection for path, projection in known.items() if path in chosen]


def matches(path: str, entry: str) -> bool:
    """Return whether an entry names a path: whole, by its end, as a glob, or as a regular expression."""
    if path == entry or path.endswith(f".{entry}") or fnmatch.fnmatchcase(path, entry):
        return True
    pattern = as_pattern(entry)
    return pattern is not None and pattern.fullmatch(path) is not None


@functools.cache
def as_pattern(entry: str) -> re.Pattern[str] | None:
    """Read an entry as a regular expression; None if it is not one, like many a glob."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "[[" is legal in a glob and suspect in a pattern
            return re.compile(entry)
    except re.error:
        return None


def linear_layers(model: nn.Module, known: Known, config: PrwConfig) -> list[Projection]:
    """List the layers that PEFT's "all-linear" means: all linear ones but the output head or a classifier's.

    Layers that their block never calls, since it reads their weight or a fused layer took their place, are
    left out.

    Raises:
        TargetError: if a layer cannot carry experts and is not excluded.
    """
    request = copy.copy(config)
    request.target_modules = ALL_LINEAR
    _maybe_include_all_linear_layers(request, inner_model(model))  # writes into the copy
    paths = {plain_path(path) for path in request.target_modules}
    odd = sorted(path for path in paths.difference(known) if is_allowed(config, path))
    if odd:
        kind = type(module_at(model, odd[0].rpartition(".")[0])).__name__
        raise TargetError(
            f"target='all-linear' means {odd[0]} too, which cannot carry experts: it is a part of a {kind} "
            f"({len(odd)} such layers). Leave it out with exclude={odd[0].rpartition('.')[2]!r}, or name the "
            "projections in target."
        )
    return [known[path] for path in known if path in paths and is_called(known[path])]


def is_called(projection: Projection) -> bool:
    """Return whether the block calls the projection, and neither reads its weight nor has fused it."""
    return not is_bypassed(projection) and not is_replaced(projection)


def excluded_paths(model: nn.Module, entries: str | Iterable[str]) -> list[str]:
    """List the projections that `exclude` leaves out: those it matches, and all below modules it matches.

    Raises:
        TargetError: if an entry matches nothing that can carry experts.
    """
    known, left_out = projections_of(model), set()
    for entry in [entries] if isinstance(entries, str) else entries:
        hits = {path for path in known if any(matches(around, entry) for around in with_parents(path))}
        if not hits:
            raise TargetError(
                nothing_found(f"exclude={entry!r} matched nothing that can carry experts", model, known)
            )
        left_out |= hits
    return [path for path in known if path in left_out]


def with_parents(path: str) -> list[str]:
    """List a path and the paths of all modules around it."""
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def is_allowed(config: PrwConfig, path: str, whole: Collection[str] = ()) -> bool:
    """Return whether exclude_modules, layers_to_transform and layers_pattern allow a path, as in PEFT.

    Paths in `whole` are named in full, and so taken from any layer.
    """
    return not is_excluded(config, path) and (path in whole or in_layers(config, path))


def is_excluded(config: PrwConfig, path: str) -> bool:
    """Return whether exclude_modules, or modules_to_save, leaves a path out, as in PEFT."""
    return isinstance(check_target_module_exists(asking_for(config, path), path), _ExcludedModule)


def in_layers(config: PrwConfig, path: str) -> bool:
    """Return whether a path is in one of the layers that layers_to_transform and layers_pattern ask for.

    Source: `check_target_module_exists` in peft.tuners.tuners_utils. It looks at layers only where a path is
    matched by its end, so it is asked about the path's last part; and it finds the index in "model.blocks.0"
    but not in "blocks.0", so it is asked about the path below a root.
    """
    request = asking_for(config, path)
    request.exclude_modules = request.modules_to_save = None
    return bool(check_target_module_exists(request, f"model.{path}"))


def asking_for(config: PrwConfig, path: str) -> PrwConfig:
    """Copy a configuration and let it ask for every path that ends like one."""
    request = copy.copy(config)
    request.target_modules = [path.rpartition(".")[2]]
    return request


# ------------------------------------------------------------------------------------------- what is refused


def refuse_unusable(model: nn.Module, groups: Iterable[Group]) -> None:
    """Refuse projections at which experts would have no effect, or would act in one place of several."""
    places: dict[int, list[str]] = {}
    for around, parent in model.named_modules():
        for child, module in parent._modules.items():
            places.setdefault(id(module), []).append(f"{around}.{child}".lstrip("."))
    for projection in (projection for group in groups for projection in group):
        path, block = projection.path, projection.block
        if "_orig_mod" in model.get_submodule(path)._modules:
            raise TargetError(
                f"{path} is compiled by itself, and its compiled forward would go on without experts. Inject "
                "the pool first and compile afterwards, or compile the block around it."
            )
        shared = places[id(projection.module)]
        if len(shared) > 1:
            raise TargetError(
                f"{path} is one module in {len(shared)} places ({first_few(shared)}), so experts would "
                "act in one only. Give each place its own module (sharing weights is fine), or leave "
                "it out of the targets."
            )
        if is_replaced(projection):
            raise TargetError(
                f"{path} is not called any more, since fuse_qkv_projections() has put {block} into one "
                'projection. Use target="kv", name to_qkv or to_kv, or call unfuse_qkv_projections() first.'
            )
        if is_bypassed(projection):
            raise TargetError(
                f"{type(projection.parent).__name__} computes with the weight of {path} and does not call "
                "it, so experts there would have no effect. Leave it out, as with exclude=, or let the block "
                "call the projection."
            )
        if not projection.is_attention and not (projection.in_features and projection.out_features):
            raise TargetError(
                f"the input and output width of {path}, a {type(unwrapped(projection.module)).__name__}, are "
                "unknown, and experts need both. Leave it out, as with exclude=."
            )


def refuse_attention_itself(model: nn.Module) -> None:
    """Refuse a model that is nothing but an nn.MultiheadAttention."""
    if isinstance(model, nn.MultiheadAttention):
        raise TargetError(
            "the model itself is an nn.MultiheadAttention, and a pool is put around modules inside a "
            "model: put it into one, as nn.Sequential or a class of yours."
        )


def refuse_missing_layers(config: PrwConfig, groups: Iterable[Group]) -> None:
    """Refuse a layer index that no target has."""
    paths = [projection.path for group in groups for projection in group]
    layers: Any = config.layers_to_transform
    for index in [layers] if isinstance(layers, int) else layers or []:
        request = copy.copy(config)
        request.layers_to_transform = [index]
        if not any(in_layers(request, path) for path in paths):
            raise TargetError(f"no target is in a layer with index {index}, which layers_to_transform names.")


def refuse_outside(model: nn.Module, config: PrwConfig) -> None:
    """Refuse projections that are named by their whole path and lie outside the layers that are asked for.

    PEFT takes such a name whatever layers_to_transform says, and folders of earlier versions rely on that.
    """
    targets = config.target_modules
    whole = set(targets if isinstance(targets, list) else ()) & projections_of(model).keys()
    for path in sorted(whole):
        if not in_layers(config, path):
            raise TargetError(
                f"target names {path}, which is in none of the layers that layers="
                f"{config.layers_to_transform!r} asks for. Leave out one of the two."
            )


def refuse_causal(model: nn.Module, paths: Iterable[str]) -> None:
    """Refuse routing by the whole sample where a token must not see later ones."""
    for path in paths:
        for around in ["", *with_parents(path)[:-1]]:
            module = model.get_submodule(around)
            if is_causal(module):
                raise ConfigError(
                    "granularity='sample' routes by the mean of the whole sequence, but "
                    f"{type(module).__name__} around {path} is causal or generates token by token, and would "
                    "see the future in training. Use granularity='token'."
                )


def is_causal(module: nn.Module) -> bool:
    """Return whether a module says that tokens do not see later ones; transformers says so in three ways."""
    can_generate = getattr(module, "can_generate", None)
    if callable(can_generate) and can_generate():
        return True
    decodes = getattr(getattr(module, "config", None), "is_decoder", False)
    return decodes is True or getattr(module, "is_causal", False) is True


# ------------------------------------------------------------------------------ a saved pool of another size


def passed_over(model: nn.Module, config: PrwConfig, known: Known | None = None) -> list[str]:
    """List what a saved pool was asked for and leaves out here; nothing if it has paths of another model."""
    known = projections_of(model) if known is None else known
    asked, paths = config.resolved_from, config.target_modules
    if asked is None or isinstance(paths, str) or not known.keys() >= set(paths or ()):
        return []
    with suppress(TargetError):
        meant = {one.path for group in find_groups(model, known, asked, config) for one in group}
        return [path for path in known if path in meant.difference(paths)]
    return []


def passed_over_note(left: list[str], config: PrwConfig) -> str:
    """Describe what a saved pool leaves out."""
    return (
        f"it was made with target={config.resolved_from!r}, which means {len(left)} more projections here "
        f"({first_few(left)})"
    )


def warn_of_passed_over(model: nn.Module, known: Known, config: PrwConfig) -> None:
    """Warn of the projections that a saved pool leaves out."""
    left = passed_over(model, config, known)
    if left:
        warnings.warn(
            f"the saved pool does not cover this model: {passed_over_note(left, config)}. Likely it is of a "
            "smaller base model; the projections named stay without experts.",
            stacklevel=2,
        )

"""Which layers of a model are named, matched, excluded, or in a layer that is asked for; as in PEFT."""

from __future__ import annotations

import copy
import fnmatch
import functools
import re
import warnings
from collections.abc import Collection, Iterable, Mapping

from peft.tuners.tuners_utils import (
    _ExcludedModule,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from torch import nn

from prw.errors import TargetError, first_few
from prw.tuner.config import ALL_LINEAR, PrwConfig
from prw.tuner.module_paths import inner_model, module_at, plain_path
from prw.tuner.targets.blocks import is_bypassed, is_replaced
from prw.tuner.targets.projections import Projection, projections_of, unwrapped

KINDS_SHOWN = 40
"""How many kinds of layers a message lists."""

Known = Mapping[str, Projection]
"""The layers of a model that can carry experts, by path."""


def matching(model: nn.Module, known: Known, entries: list[str]) -> list[Projection]:
    """List the projections that names, globs or patterns match, in the model's order.

    Raises:
        TargetError: if an entry matches nothing.
    """
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
    """Whether an entry names a path: whole, by its end, as a glob, or as a regular expression."""
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
    """Whether the block calls the projection: it does not read its weight, and no fused layer replaces it."""
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
    """Whether exclude_modules, layers_to_transform and layers_pattern allow a path, as in PEFT.

    Args:
        config: The configuration.
        path: The path.
        whole: Paths that are named in full, and so taken from any layer.
    """
    return not is_excluded(config, path) and (path in whole or in_layers(config, path))


def is_excluded(config: PrwConfig, path: str) -> bool:
    """Whether exclude_modules, or modules_to_save, leaves a path out, as in PEFT."""
    return isinstance(check_target_module_exists(asking_for(config, path), path), _ExcludedModule)


def in_layers(config: PrwConfig, path: str) -> bool:
    """Whether a path is in one of the layers that layers_to_transform and layers_pattern ask for.

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


def nothing_found(what: str, model: nn.Module, known: Known) -> str:
    """Say what was looked for, which layers look like attention, and which call would work."""
    alike = attention_like(known)
    if not alike:
        names = dict.fromkeys(path.rpartition(".")[2] for path in known)
        call = f", as in prw.inject(model, target=[{next(iter(names))!r}])" if names else "; it has none"
        advice = (
            f"It has: {kinds_of(model)}. Experts go on linear projections; pass target= names of those "
            f"meant{call}."
        )
    else:
        first = [projections[0] for projections in alike.values()]
        makers = [projection for projection in first if {"k", "v"} & set(projection.role.letters)] or first
        named = ", ".join(dict.fromkeys(repr(one.path.rpartition(".")[2]) for one in makers[:4]))
        lines = [f"{text} at {', '.join(one.path for one in ones[:2])}" for text, ones in alike.items()]
        advice = (
            f"Its linear layers that look like attention: {'; '.join(lines[:KINDS_SHOWN])}. Name those that "
            f"make keys and values, as in prw.inject(model, target=[{named}]): whole paths, ends of paths, "
            "globs or regular expressions; where one layer makes both, add layout='q|k|v'."
        )
    return f"{what} in {type(model).__name__}. {advice}"


def attention_like(known: Known) -> dict[str, list[Projection]]:
    """Sort the layers that look like a part of attention by name, class and widths."""
    found: dict[str, list[Projection]] = {}
    for path, projection in known.items():
        last = path.rpartition(".")[2]
        around = type(projection.parent).__name__.lower()
        if "att" in path.lower() or "att" in around or projection.role.letters:
            kind = type(unwrapped(projection.module)).__name__
            text = f"{last} ({kind}) {projection.in_features} -> {projection.out_features}"
            found.setdefault(text, []).append(projection)
    return found


def kinds_of(model: nn.Module) -> str:
    """List a model's modules by the last part of each path and its class."""
    kinds = {(name.rpartition(".")[2], type(module).__name__) for name, module in model.named_modules()}
    leaves = sorted(f"{last} ({kind})" for last, kind in kinds if last and not last.isdigit())
    return first_few(leaves, KINDS_SHOWN)

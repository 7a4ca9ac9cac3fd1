"""Which modules get experts: found by structure, or named, and limited by `exclude` and `layers`.

"kv", "k" and "v" look at structure, not at the model's class: at the names and widths of an attention block's
projections. Of a joint attention they take the main stream, the picture's, and leave out what joins it, as
`add_k_proj`/`add_v_proj` of the text in FLUX and `to_k_t`/`to_v_t` in HiDream, since in CoLoGen only source
tokens see experts. "all-kv" takes every stream; each is a site of its own.
"""

from __future__ import annotations

import fnmatch
import functools
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from prw.errors import TargetError
from prw.tuner.grouping import bypassed, candidates, replaced, sites_of, structural
from prw.tuner.naming import role_of, split
from prw.tuner.seen import nothing
from prw.tuner.wrapping import module_at

__all__ = [
    "BY_STRUCTURE",
    "STRUCTURAL",
    "excluded_paths",
    "find_targets",
    "limited",
    "match_targets",
    "matches",
    "sites_of",
]

STRUCTURAL = ("kv", "k", "v")
BY_STRUCTURE = (*STRUCTURAL, "all-kv")
"""Targets that look at structure: "all-kv" takes every stream of a joint attention, the others the main."""


def find_targets(
    model: nn.Module, target: str | Iterable[str], wanted: Callable[[str], bool] | None = None
) -> list[str]:
    """List the modules that get experts, in the model's order.

    Args:
        model: Any model.
        target: "kv", "k", "v" or "all-kv"; or one or several module names (whole, or the end of a path),
            globs or regular expressions (matching the whole path). A whole name means that module alone.
        wanted: Which of the matching paths are taken; None means all. A whole name is taken in any case.

    Raises:
        TargetError: if an entry matches nothing that can carry experts; lists what was there. Also if none
            of what matches is wanted, or a module hangs in two places.
    """
    named = {target} if isinstance(target, str) else set(target)
    matched = match_targets(model, target)
    chosen = [name for name in matched if wanted is None or name in named or wanted(name)]
    if not chosen:
        raise TargetError(
            f"{len(matched)} modules match the target ({', '.join(matched[:3])}, ...), and exclude_modules, "
            "layers_to_transform and layers_pattern leave none of them. Change one of those."
        )
    if named <= set(BY_STRUCTURE):  # whatever else there is gets experts; if there is nothing else, say why
        chosen = without_bypassed_sites(model, chosen) or chosen
    refuse_compiled(model, chosen)
    refuse_shared(model, chosen)
    refuse_replaced(model, chosen)
    refuse_bypassed(model, chosen)
    return chosen


def match_targets(model: nn.Module, target: str | Iterable[str]) -> list[str]:
    """List the modules that a target matches, in the model's order.

    Raises:
        TargetError: if an entry matches nothing.
    """
    found = candidates(model)
    if isinstance(target, str) and target in BY_STRUCTURE:
        picked = structural(model, found, target)
        if not picked:
            if isinstance(model, nn.MultiheadAttention):
                raise TargetError(
                    "the model itself is an nn.MultiheadAttention, and a pool is put around modules inside a "
                    "model: put it into one, as nn.Sequential or a class of yours."
                )
            raise TargetError(nothing(f"target={target!r} found no attention block", model))
        return picked
    entries = [target] if isinstance(target, str) else list(target)
    if not entries:
        raise TargetError(nothing("the list of targets is empty", model))
    chosen: set[str] = set()
    for entry in entries:
        hits = [entry] if entry in found else [name for name in found if matches(name, entry)]
        if not hits:
            raise TargetError(nothing(f"target {entry!r} matched nothing that can carry experts", model))
        chosen.update(hits)
    return [name for name in found if name in chosen]


def refuse_compiled(model: nn.Module, chosen: Iterable[str]) -> None:
    """Refuse a projection that is compiled by itself: its compiled forward would go on without experts.

    Raises:
        TargetError: names the first one.
    """
    for name in chosen:
        if "_orig_mod" in model.get_submodule(name)._modules:
            raise TargetError(
                f"{name} is compiled by itself, and its compiled forward would go on without experts. Inject "
                "the pool first and compile afterwards, or compile the block around it."
            )


def refuse_shared(model: nn.Module, chosen: Iterable[str]) -> None:
    """Refuse a projection that hangs in the model twice: experts would be put into one of the places only.

    Raises:
        TargetError: names the places.
    """
    places: dict[int, list[str]] = {}
    for path, parent in model.named_modules():
        for child, module in parent._modules.items():
            places.setdefault(id(module), []).append(f"{path}.{child}".lstrip("."))
    for name in chosen:
        shared = places[id(module_at(model, name))]
        if len(shared) > 1:
            raise TargetError(
                f"{name} is one module in {len(shared)} places ({', '.join(shared[:3])}), so experts would "
                "act in one only. Give each place its own module (sharing weights is fine), or leave "
                "it out of the targets."
            )


def refuse_replaced(model: nn.Module, chosen: Iterable[str]) -> None:
    """Refuse separate projections of a block that diffusers has fused: they are not called any more.

    Raises:
        TargetError: names the first one.
    """
    for name in chosen:
        block, last = split(name)
        if replaced(module_at(model, block), role_of(last)):
            raise TargetError(
                f"{name} is not called any more, since fuse_qkv_projections() has put {block} into one "
                'projection. Use target="kv", name to_qkv or to_kv, or call unfuse_qkv_projections() first.'
            )


def without_bypassed_sites(model: nn.Module, chosen: list[str]) -> list[str]:
    """Leave out sites whose block calls none of their projections; one that calls only some stays whole."""
    unused = {
        name
        for members in sites_of(chosen).values()
        if all(is_bypassed(model, name) for name in members)
        for name in members
    }
    return [name for name in chosen if name not in unused]


def is_bypassed(model: nn.Module, name: str) -> bool:
    """Tell whether a projection is never called, since its block computes with its weight."""
    block, last = split(name)
    return bypassed(module_at(model, block), last)


def refuse_bypassed(model: nn.Module, chosen: Iterable[str]) -> None:
    """Refuse projections whose block computes with their weights without calling them.

    Raises:
        TargetError: names the first one.
    """
    for name in chosen:
        if is_bypassed(model, name):
            kind = type(module_at(model, split(name)[0])).__name__
            raise TargetError(
                f"{kind} computes with the weight of {name} and does not call it, so experts there would "
                "have no effect. Leave it out, as with exclude=, or let the block call the projection."
            )


def matches(name: str, entry: str) -> bool:
    """Tell whether an entry names a path: whole, by its end, as a glob, or as a regular expression."""
    if name == entry or name.endswith(f".{entry}") or fnmatch.fnmatchcase(name, entry):
        return True
    pattern = as_pattern(entry)
    return pattern is not None and pattern.fullmatch(name) is not None


@functools.cache
def as_pattern(entry: str) -> re.Pattern[str] | None:
    """Read an entry as a regular expression; None if it is none, as many a glob is not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "[[" is legal in a glob and suspect in a pattern
            return re.compile(entry)
    except re.error:
        return None


def excluded_paths(model: nn.Module, entries: str | Iterable[str]) -> list[str]:
    """List the projections that `exclude` leaves out: those it matches, and all below modules it matches.

    Raises:
        TargetError: if an entry matches nothing that can carry experts.
    """
    found, left_out = candidates(model), set()
    for entry in [entries] if isinstance(entries, str) else entries:
        hits = {
            name
            for name in found
            if any(
                matches(".".join(name.split(".")[:depth]), entry) for depth in range(1, name.count(".") + 2)
            )
        }
        if not hits:
            raise TargetError(nothing(f"exclude={entry!r} matched nothing that can carry experts", model))
        left_out |= hits
    return [name for name in found if name in left_out]


def limited(
    model: nn.Module, exclude: str | Iterable[str], layers: int | Iterable[int] | None
) -> dict[str, Any]:
    """Say `exclude` and `layers` in PEFT's terms.

    Raises:
        TargetError: if an entry of `exclude` matches nothing.
    """
    indices = layers if layers is None or isinstance(layers, int) else list(layers)
    left_out = excluded_paths(model, exclude)
    return {"exclude_modules": left_out or None, "layers_to_transform": indices}

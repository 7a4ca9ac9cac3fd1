"""Which modules get experts, and which of them share a site.

"kv", "k" and "v" look at structure, not at the model's class: a module that has a key and a value projection
as children, both `nn.Linear`, is an attention block. On FLUX that is `to_k`/`to_v` of every double and single
block, which carry the image and the source stream. The text stream's `add_k_proj`/`add_v_proj` are left out
unless named, since in CoLoGen only source tokens see experts; named, they are a site of their own.
"""

from __future__ import annotations

import fnmatch
import functools
import re
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from prw.errors import TargetError


class Pair(NamedTuple):
    """Attribute names of a key and a value projection; `site` is appended to the block's path."""

    key: str
    value: str
    site: str = ""


PAIRS = (
    Pair("to_k", "to_v"),
    Pair("k_proj", "v_proj"),
    Pair("key", "value"),
    Pair("k", "v"),
    Pair("k_lin", "v_lin"),
    Pair("key_proj", "value_proj"),
    Pair("wk", "wv"),
)
TEXT_PAIR = Pair("add_k_proj", "add_v_proj", ".text")
STRUCTURAL = ("kv", "k", "v")


def adaptable(module: nn.Module) -> bool:
    """Tell whether a module can carry experts: a Linear, or a PEFT layer around one."""
    inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return isinstance(inner, nn.Linear)


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """List what can carry experts by path, leaving out the insides of adapters."""
    found: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not name or name.startswith(inside or "\0"):
            continue
        if adaptable(module):
            found[name] = module
        if isinstance(module, BaseTunerLayer):
            inside = (*inside, name + ".")
    return found


def sites_of(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Group projections by the attention block they serve.

    Args:
        names: Paths of projections.

    Returns:
        Site name to its projections, key before value. A projection without a partner is a site of its own.
    """
    known = dict.fromkeys(names)
    sites: dict[str, tuple[str, ...]] = {}
    for name in known:
        block, _, last = name.rpartition(".")
        pair = next((pair for pair in (*PAIRS, TEXT_PAIR) if last in (pair.key, pair.value)), None)
        both = tuple(f"{block}.{part}".lstrip(".") for part in (pair.key, pair.value)) if pair else ()
        if pair is not None and all(part in known for part in both):
            sites[f"{block}{pair.site}" or "model"] = both
        else:
            sites[name] = (name,)
    return sites


def find_targets(
    model: nn.Module, target: str | Iterable[str], wanted: Callable[[str], bool] | None = None
) -> list[str]:
    """List the modules that get experts, in the model's order.

    Args:
        model: Any model.
        target: "kv", "k" or "v"; or one or several module names (whole, or the end of a path), globs or
            regular expressions (matching the whole path). A whole name means that module alone.
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
    refuse_shared(model, chosen)
    return chosen


def match_targets(model: nn.Module, target: str | Iterable[str]) -> list[str]:
    """List the modules that a target matches, in the model's order.

    Raises:
        TargetError: if an entry matches nothing.
    """
    found = candidates(model)
    if isinstance(target, str) and target in STRUCTURAL:
        picked = structural(found, target)
        if not picked:
            raise TargetError(
                nothing(f"target={target!r} found no attention block with separate key and value", model)
            )
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
        shared = places[id(model.get_submodule(name))]
        if len(shared) > 1:
            raise TargetError(
                f"{name} is one module in {len(shared)} places ({', '.join(shared[:3])}), so experts would "
                "act in one only. Give each place its own module (sharing weights is fine), or leave "
                "it out of the targets."
            )


def structural(found: dict[str, nn.Module], target: str) -> list[str]:
    """Pick key and value projections of blocks that have both, in the model's order."""
    picked: set[str] = set()
    for projections in sites_of(found).values():
        if len(projections) == 2 and projections[0].rpartition(".")[2] != TEXT_PAIR.key:
            picked.update({"kv": projections, "k": projections[:1], "v": projections[1:]}[target])
    return [name for name in found if name in picked]


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


def nothing(what: str, model: nn.Module) -> str:
    """Say what was looked for and what the model has instead, by the last part of each path and its class."""
    kinds = {(name.rpartition(".")[2], type(module).__name__) for name, module in model.named_modules()}
    leaves = sorted(f"{last} ({kind})" for last, kind in kinds if last and not last.isdigit())
    shown = ", ".join(leaves[:40]) + (", ..." if len(leaves) > 40 else "")
    return (
        f"{what} in {type(model).__name__}. It has: {shown or 'no modules'}. Experts go on nn.Linear; pass "
        "target= a name, glob or regular expression of the projections meant."
    )

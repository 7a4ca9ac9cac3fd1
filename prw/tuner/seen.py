"""Says what a model has, where what was looked for is not in it."""

from __future__ import annotations

from torch import nn

from prw.errors import first_few
from prw.tuner.grouping import candidates, unwrapped, widths_of
from prw.tuner.naming import role_of, split
from prw.tuner.wrapping import module_at

SHOWN = 40
"""How many kinds of modules a message lists."""


def nothing(what: str, model: nn.Module) -> str:
    """Say what was looked for, which layers look like attention, and which call would work."""
    alike = attention_like(model)
    if not alike:
        names = dict.fromkeys(path.rpartition(".")[2] for path in candidates(model))
        call = f", as in prw.inject(model, target=[{next(iter(names))!r}])" if names else "; it has none"
        advice = (
            f"It has: {kinds_of(model)}. Experts go on linear projections; pass target= names of those "
            f"meant{call}."
        )
    else:
        first = [next(iter(paths)) for paths in alike.values()]
        makers = [path for path in first if {"k", "v"} & set(role_of(split(path)[1]).letters)] or first
        named = ", ".join(dict.fromkeys(repr(path.rpartition(".")[2]) for path in makers[:4]))
        lines = [f"{text} at {', '.join(paths[:2])}" for text, paths in alike.items()]
        advice = (
            f"Its linear layers that look like attention: {'; '.join(lines[:SHOWN])}. Name those that make "
            f"keys and values, as in prw.inject(model, target=[{named}]): whole paths, ends of paths, globs "
            "or regular expressions; where one layer makes both, add layout='q|k|v'."
        )
    return f"{what} in {type(model).__name__}. {advice}"


def attention_like(model: nn.Module) -> dict[str, list[str]]:
    """Sort the paths of layers that look like a part of attention by name, class and widths."""
    found: dict[str, list[str]] = {}
    for path, module in candidates(model).items():
        block, _, last = path.rpartition(".")
        around = type(module_at(model, block)).__name__.lower()
        if "att" in path.lower() or "att" in around or role_of(last).letters:
            in_features, out_features = widths_of(module)
            kind = type(unwrapped(module)).__name__
            found.setdefault(f"{last} ({kind}) {in_features} -> {out_features}", []).append(path)
    return found


def kinds_of(model: nn.Module) -> str:
    """List a model's modules by the last part of each path and its class."""
    kinds = {(name.rpartition(".")[2], type(module).__name__) for name, module in model.named_modules()}
    leaves = sorted(f"{last} ({kind})" for last, kind in kinds if last and not last.isdigit())
    return first_few(leaves, SHOWN)

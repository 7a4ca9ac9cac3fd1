"""What the code of an attention block does with its projections, read from its compiled methods."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Iterator
from contextlib import suppress
from types import CellType, CodeType, FunctionType
from typing import Any

from torch import nn

READS = ("LOAD_ATTR", "LOAD_METHOD")
"""Instructions that read an attribute; up to Python 3.11 a called one has an instruction of its own."""
DESCRIBES = frozenset(("bias", "data", "device", "dtype", "shape", "copy_", "in_features", "out_features"))
"""Attributes of a projection or its weight that a block reads, or fills, without computing with them."""


@functools.cache
def source_of(kind: type[nn.Module]) -> str:
    """Read the source of a class's methods except `__init__`; those without a source are left out."""
    sources = []
    for method in methods_of(kind):
        with suppress(OSError, TypeError):
            sources.append(inspect.getsource(method))
    return "\n".join(sources)


@functools.cache
def uses_of(kind: type[nn.Module], name: str) -> frozenset[str]:
    """List how the methods of a class use a projection: "weight" where they read its weight, else "other".

    Reading only what describes it (its bias, its weight's dtype) is no use. The compiled methods are read,
    since a class made in a notebook or by `exec` has no source.
    """
    uses: set[str] = set()
    for method in methods_of(kind):
        for chain in attribute_chains(method.__code__):
            if is_use(chain, name):
                uses.add("weight" if chain[1:2] == ("weight",) else "other")
    return frozenset(uses)


def is_use(chain: tuple[str, ...], name: str) -> bool:
    """Whether a chain of attributes begins with a name and goes on to more than a description of it."""
    if chain[:1] != (name,):
        return False
    described = chain[1:2] and chain[1] != "weight" and chain[1] in DESCRIBES
    return not described and not (chain[1:2] == ("weight",) and chain[2:3] and chain[2] in DESCRIBES)


def attribute_chains(code: CodeType) -> Iterator[tuple[str, ...]]:
    """Iterate over the chains of attribute reads in a function, each also without its first reads.

    `self.qkv.weight.dtype` gives (qkv, weight, dtype), (weight, dtype) and (dtype).
    """
    chain: list[str] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname in READS:
            chain.append(str(instruction.argval))
            continue
        yield from (tuple(chain[start:]) for start in range(len(chain)))
        chain = []
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from attribute_chains(inner)


def methods_of(kind: type[nn.Module]) -> list[FunctionType]:
    """List the methods that a class does not have from nn.Module, except `__init__`.

    Decorated ones come with the functions that their decorators wrap.
    """
    own = [
        member
        for name, member in inspect.getmembers(kind, callable)
        if name != "__init__" and getattr(nn.Module, name, None) is not member
    ]
    return list(dict.fromkeys(function for member in own for function in with_decorated(member)))


def with_decorated(member: Any) -> list[FunctionType]:
    """List a method and the functions in its closure: a decorator keeps the decorated method there."""
    found: list[FunctionType] = []
    left = [member]
    while left:
        function = inspect.unwrap(left.pop())
        if isinstance(function, FunctionType) and function not in found:
            found.append(function)
            cells = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
            left += [inner for inner in cells if callable(inner)]
    return found

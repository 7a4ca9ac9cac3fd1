"""Which rows of a fused projection are keys and which values, told by widths, heads and the block's code.

Two layouts are in use. Blocks: all queries, all keys, all values. Per head: the queries, the key and the
value of one key head, then those of the next; with one key head that is blocks too. How a block splits its
output cannot be seen in its weights, so where its code says it, that is believed; else its name tells.
"""

from __future__ import annotations

import functools
import inspect
import re
from contextlib import suppress
from types import CellType, FunctionType
from typing import Any, NamedTuple

from torch import nn

from prw.kernels import OutputSlice
from prw.tuner.naming import role_of

QUERY_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "num_attn_heads", "nhead")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_heads", "n_kv_heads", "kv_n_heads")
HEAD_WIDTH = ("head_dim", "head_size", "dim_head", "dim_heads", "attention_head_size", "attention_head_dim")
PER_HEAD = re.compile(
    r"heads?,\s*3\b|\b3 \* self\.\w*head_\w+\)|\b3 \* \w*head_dim\)|transpose_for_scores\(qp\)"
)
"""What code looks like that splits each head's part into query, key and value."""
PER_HEAD_NAMES = ("query_key_value",)
"""Names whose rows are per head where the code does not say; Megatron's convention."""

Layout = dict[str, OutputSlice]
"""Letter ("k", "v") to the rows of that kind; {"": ...} where keys and values are the same rows."""


class Heads(NamedTuple):
    """Sizes of an attention: query heads, key heads, and how wide each is."""

    queries: int
    keys: int
    width: int


def fused_layout(parent: nn.Module, name: str, in_features: int, out_features: int) -> Layout | None:
    """Tell the rows of a fused projection.

    Args:
        parent: The attention block.
        name: Attribute name of the projection.
        in_features: Width of its input.
        out_features: Width of its output.

    Returns:
        Rows by letter, or None where widths and block leave more than one possibility.
    """
    letters = letters_of(parent, name, in_features, out_features)
    if name == "kv_b_proj":
        return latent(parent, out_features)
    heads = heads_of(parent, in_features)
    known = special(parent, name, letters, heads, out_features)
    if known is not None:
        return known
    sizes = sizes_of(parent, letters, heads, in_features, out_features)
    if sizes is None:
        return None
    if not splits_per_head(parent, name, letters):
        return stacked(letters, sizes, 1, out_features)
    if heads is None or sum(sizes.values()) != out_features or any(n % heads.keys for n in sizes.values()):
        return None
    return stacked(letters, {letter: size // heads.keys for letter, size in sizes.items()}, heads.keys)


def stacked(letters: str, sizes: dict[str, int], groups: int, width: int | None = None) -> Layout:
    """Lay letters out one after another in every group; further rows may follow."""
    whole = sum(sizes[letter] for letter in letters) if width is None else width
    layout, start = {}, 0
    for letter in letters:
        stop = start + sizes[letter]
        if letter != "q":
            layout[letter] = OutputSlice(groups, whole, start, stop)
        start = stop
    return layout


def sizes_of(
    parent: nn.Module, letters: str, heads: Heads | None, in_features: int, out_features: int
) -> dict[str, int] | None:
    """Tell how many rows each letter has in all; None if widths do not say."""
    further = "mlp" in " ".join(vars(parent).get("_modules", {}))
    candidates = []
    if heads is not None:
        candidates.append({"q": heads.queries * heads.width, **dict.fromkeys("kv", heads.keys * heads.width)})
    key, value = number(parent, ("key_dim", "kv_dim", "k_dim")), number(parent, ("value_dim", "kv_dim"))
    if key and value:
        query = number(parent, ("q_dim", "query_dim")) or key
        candidates += [{"q": query, "k": key, "v": value}, {"q": key, "k": key, "v": value}]
    inner = number(parent, ("inner_dim", "all_head_size", "dim_out", "embed_dim"))
    candidates += [dict.fromkeys("qkv", width) for width in (inner, in_features) if width]
    for sizes in candidates:
        if sum(sizes[letter] for letter in letters) == out_features:
            return sizes
    for sizes in candidates[:1]:
        if further and sum(sizes[letter] for letter in letters) < out_features:
            return sizes
    return None


def heads_of(parent: nn.Module, in_features: int) -> Heads | None:
    """Read an attention's sizes off the block or its configuration; None if it does not say."""
    queries = number(parent, QUERY_HEADS)
    if not queries:
        return None
    width = number(parent, HEAD_WIDTH) or in_features // queries
    keys = number(parent, KEY_HEADS) or (1 if getattr(parent, "multi_query", False) is True else queries)
    return Heads(queries, keys, width)


def number(parent: nn.Module, names: tuple[str, ...]) -> int | None:
    """Read the first whole number of these names, from the block itself before its configuration."""
    for holder in (parent, getattr(parent, "config", None)):
        for name in names:
            value: Any = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def latent(parent: nn.Module, out_features: int) -> Layout | None:
    """Lay out the second projection of multi-head latent attention: a key and a value per head."""
    heads = number(parent, QUERY_HEADS)
    key, value = number(parent, ("qk_nope_head_dim",)), number(parent, ("v_head_dim",))
    if not heads or not key or not value or heads * (key + value) != out_features:
        return None
    return stacked("kv", {"k": key, "v": value}, heads)


def letters_of(parent: nn.Module, name: str, in_features: int, out_features: int) -> str:
    """Tell what a projection makes: by its name, or as an attention's `in_proj` of three times the width."""
    kind = type(parent).__name__.lower()
    if name == "in_proj" and out_features == 3 * in_features and ("attention" in kind or "attn" in kind):
        return "qkv"
    return role_of(name).letters


def special(
    parent: nn.Module, name: str, letters: str, heads: Heads | None, out_features: int
) -> Layout | None:
    """Give layouts that no rule reaches: keys that are values, two keys per value, a block's own order."""
    if letters == "kv" and heads is not None and out_features == heads.width:
        return {"": OutputSlice(1, out_features, 0, out_features)}
    if name == "c_attn" and getattr(parent, "is_cross_attention", False) is True:
        return stacked("kv", dict.fromkeys("kv", out_features // 2), 1)
    if name.endswith("qkvz"):  # a query, a key, the values and a gate per key head, as in Qwen3-Next
        groups, key = number(parent, ("num_k_heads",)), number(parent, ("head_k_dim",))
        value = number(parent, ("value_dim",))
        if not groups or not key or not value or out_features != 2 * (groups * key + value):
            return None
        return stacked("qkv", {"q": key, "k": key, "v": value // groups}, groups, out_features // groups)
    if type(parent).__name__ == "CodeGenAttention" and heads is not None:
        return stacked("qvk", dict.fromkeys("qvk", out_features // 12), 4)  # split over four TPU cores
    if getattr(parent, "use_differential", getattr(parent, "differential", False)) is True:
        width = out_features // (2 * len(letters) - 1)  # two queries and two keys, one value
        return stacked(letters, {"q": 2 * width, "k": 2 * width, "v": width}, 1)
    return None


def splits_per_head(parent: nn.Module, name: str, letters: str) -> bool:
    """Tell whether a block splits the fused output head by head."""
    if len(letters) < 3:
        return False
    kind: Any = type(parent)  # mypy takes a module's class for unhashable
    return bool(PER_HEAD.search(code_of(kind))) or name in PER_HEAD_NAMES


@functools.cache
def code_of(kind: type[nn.Module]) -> str:
    """Read the methods of a class but its `__init__`; those without a source are left out."""
    sources = []
    for method in methods_of(kind):
        with suppress(OSError, TypeError):
            sources.append(inspect.getsource(method))
    return "\n".join(sources)


def methods_of(kind: type[nn.Module]) -> list[FunctionType]:
    """List the methods that a class does not have from nn.Module, but for its `__init__`.

    Decorated ones come with what their decorators are around.
    """
    own = [
        member
        for name, member in inspect.getmembers(kind, callable)
        if name != "__init__" and getattr(nn.Module, name, None) is not member
    ]
    return list(dict.fromkeys(function for member in own for function in with_decorated(member)))


def with_decorated(member: Any) -> list[FunctionType]:
    """Give a method and the functions that it holds: a decorator's holds the method that it was given."""
    found: list[FunctionType] = []
    left = [member]
    while left:
        function = inspect.unwrap(left.pop())
        if isinstance(function, FunctionType) and function not in found:
            found.append(function)
            held = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
            left += [inner for inner in held if callable(inner)]
    return found

"""How the output of a fused projection is laid out: which of its rows are keys and which values.

Two layouts are in use. Blocks: all queries, all keys, all values. Per head: the queries, the key and the
value of one key head, then those of the next; with one key head that is blocks too. Weights do not show how
a block splits its output. Where the block's code shows it, the code decides; otherwise the name does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from prw.errors import TargetError
from prw.kernels import OutputSlice
from prw.layers import WHOLE
from prw.tuner.targets.projections import Projection, source_of

QUERY_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "num_attn_heads", "nhead")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_heads", "n_kv_heads", "kv_n_heads")
HEAD_WIDTH = ("head_dim", "head_size", "dim_head", "dim_heads", "attention_head_size", "attention_head_dim")
PER_HEAD = re.compile(
    r"heads?,\s*3\b|\b3 \* self\.\w*head_\w+\)|\b3 \* \w*head_dim\)|transpose_for_scores\(qp\)"
)
"""Code that splits each head's part into query, key and value."""
PER_HEAD_NAMES = ("query_key_value",)
"""Names of projections that are laid out per head where the code does not show it; Megatron's convention."""
WRITTEN = re.compile(r"(?:(?P<groups>\d+)\*\()?(?P<items>[qkvx]\d*(?:\|[qkvx]\d*)*)\)?")
"""A layout as a user writes it: q|k|v, q64|k16|v16, 8*(q|k|v); x stands for rows of something else."""

Layout = dict[str, OutputSlice]
"""Letter ("k", "v") to its rows; {"": ...} where keys and values are the same rows."""


class Heads(NamedTuple):
    """Sizes of an attention: query heads, key heads, and the width of each."""

    queries: int
    keys: int
    width: int


def output_slices(
    projection: Projection, letters: str, layout: str | None
) -> Mapping[str, OutputSlice | None]:
    """Find the rows of a projection's output that experts add to.

    Args:
        projection: The projection.
        letters: Which of keys and values get experts: "kv", "k" or "v"; "all" means every row.
        layout: The layout of a fused projection as a user wrote it; None finds it by structure.

    Raises:
        TargetError: if the rows of a fused projection cannot be found; says how to give them.
    """
    if projection.is_attention:
        rows, letters = attention_layout(projection), letters.replace("all", "kv")
    elif letters == "all":
        return WHOLE
    elif layout is not None:
        rows = read_layout(projection, layout)
    elif projection.is_latent or not {"k", "v"} <= set(projection.letters):
        return WHOLE
    else:
        rows = fused_layout(projection)
    if "" in rows:
        return WHOLE
    return {letter: rows[letter] for letter in "kv" if letter in letters and letter in rows}


def attention_layout(projection: Projection) -> Layout:
    """Lay out nn.MultiheadAttention: three blocks, queries first.

    Raises:
        TargetError: if its keys and values read inputs of different widths, which no single router can read.
    """
    if not projection.in_features:
        raise TargetError(
            f"{projection.path} is an nn.MultiheadAttention whose kdim and vdim differ, so that no router "
            "can read the input of both. Use separate projections (nn.Linear) for its keys and values."
        )
    return stacked("qkv", dict.fromkeys("qkv", projection.out_features // 3))


def read_layout(projection: Projection, layout: str) -> Layout:
    """Read a layout as a user writes it.

    Raises:
        TargetError: if it is not a layout, or does not fit the projection.
    """
    read = WRITTEN.fullmatch(layout.replace(" ", ""))
    items = [(item[0], int(item[1:] or 0)) for item in read["items"].split("|")] if read else []
    letters = [letter for letter, _ in items if letter != "x"]
    groups = int((read and read["groups"]) or 1)
    per_group, rest = divmod(projection.out_features, max(groups, 1))
    unsized = sum(not size for _, size in items)
    left = per_group - sum(size for _, size in items)
    fits = groups > 0 and not rest and (left % unsized == 0 and left > 0 if unsized else left == 0)
    if not {"k", "v"} & set(letters) or len(set(letters)) != len(letters) or not fits:
        raise TargetError(
            f"layout={layout!r} does not fit {projection.path}, whose output has {projection.out_features} "
            "rows. Write the parts in their order: 'q|k|v' for equal blocks, 'q64|k16|v16|x32' for blocks of "
            "given sizes (x is something else), '8*(q|k|v)' for eight heads with a query, key and value each."
        )
    rows: Layout = {}
    start = 0
    for letter, size in items:
        stop = start + (size or left // unsized)
        if letter in "kv":
            rows[letter] = OutputSlice(groups, per_group, start, stop)
        start = stop
    return rows


def fused_layout(projection: Projection) -> Layout:
    """Find the rows of a fused projection by the sizes, the name and the code of its block.

    Raises:
        TargetError: if these leave none or more than one possibility; says how to write the layout.
    """
    heads = heads_of(projection.parent, projection.in_features)
    layout = special_layout(projection, heads) or regular_layout(projection, heads)
    if layout is None:
        path = projection.path
        raise TargetError(
            f"{path} ({projection.in_features} -> {projection.out_features}) is named like keys and values "
            "in one projection, but its width and its block's head counts do not show which rows are which. "
            f"Give the layout: prw.inject(model, target=[{path!r}], layout='q|k|v') for three equal blocks, "
            "'q64|k16|v16' for blocks of given sizes, '8*(q|k|v)' for eight heads with a query, key and "
            f"value each; or leave it out with exclude=[{path!r}]."
        )
    return layout


def regular_layout(projection: Projection, heads: Heads | None) -> Layout | None:
    """Lay out queries, keys and values in blocks, or per head where the block splits them so."""
    if projection.name == "kv_b_proj":
        return None  # the latent layout has not fitted, and there is no other
    letters, out_features = projection.letters, projection.out_features
    sizes = sizes_of(projection, heads)
    if sizes is None:
        return None
    if not splits_per_head(projection):
        return stacked(letters, sizes, 1, out_features)
    if heads is None or sum(sizes.values()) != out_features or any(n % heads.keys for n in sizes.values()):
        return None
    return stacked(letters, {letter: size // heads.keys for letter, size in sizes.items()}, heads.keys)


def special_layout(projection: Projection, heads: Heads | None) -> Layout | None:
    """Return layouts that no rule covers: keys that are values, two keys per value, a block's own order."""
    parent, name = projection.parent, projection.name
    letters, out_features = projection.letters, projection.out_features
    if name == "kv_b_proj":  # multi-head latent attention: a key and a value per head
        count, key, value = (number(parent, n) for n in (QUERY_HEADS, ("qk_nope_head_dim",), ("v_head_dim",)))
        if not count or not key or not value or count * (key + value) != out_features:
            return None
        return stacked("kv", {"k": key, "v": value}, count)
    if letters == "kv" and heads is not None and out_features == heads.width:
        return {"": OutputSlice(1, out_features, 0, out_features)}
    if name == "c_attn" and getattr(parent, "is_cross_attention", False) is True:
        return stacked("kv", dict.fromkeys("kv", out_features // 2))
    if name.endswith("qkvz"):  # a query, a key, the values and a gate per key head, as in Qwen3-Next
        groups, key, value = (number(parent, (n,)) for n in ("num_k_heads", "head_k_dim", "value_dim"))
        if not groups or not key or not value or out_features != 2 * (groups * key + value):
            return None
        return stacked("qkv", {"q": key, "k": key, "v": value // groups}, groups, out_features // groups)
    if type(parent).__name__ == "CodeGenAttention" and heads is not None:
        return stacked("qvk", dict.fromkeys("qvk", out_features // 12), 4)  # split over four TPU cores
    if getattr(parent, "use_differential", getattr(parent, "differential", False)) is True:
        width = out_features // (2 * len(letters) - 1)  # two queries and two keys, one value
        return stacked(letters, {"q": 2 * width, "k": 2 * width, "v": width})
    return None


def stacked(letters: str, sizes: dict[str, int], groups: int = 1, width: int | None = None) -> Layout:
    """Lay letters out one after another in every group; further rows may follow."""
    whole = sum(sizes[letter] for letter in letters) if width is None else width
    layout, start = {}, 0
    for letter in letters:
        stop = start + sizes[letter]
        if letter != "q":
            layout[letter] = OutputSlice(groups, whole, start, stop)
        start = stop
    return layout


def sizes_of(projection: Projection, heads: Heads | None) -> dict[str, int] | None:
    """Find how many rows each letter has in all; None if widths do not show it."""
    parent, letters, out_features = projection.parent, projection.letters, projection.out_features
    candidates = []
    if heads is not None:
        candidates.append({"q": heads.queries * heads.width, **dict.fromkeys("kv", heads.keys * heads.width)})
    key, value = number(parent, ("key_dim", "kv_dim", "k_dim")), number(parent, ("value_dim", "kv_dim"))
    if key and value:
        query = number(parent, ("q_dim", "query_dim")) or key
        candidates += [{"q": query, "k": key, "v": value}, {"q": key, "k": key, "v": value}]
    inner = number(parent, ("inner_dim", "all_head_size", "dim_out", "embed_dim"))
    candidates += [dict.fromkeys("qkv", width) for width in (inner, projection.in_features) if width]
    for sizes in candidates:
        if sum(sizes[letter] for letter in letters) == out_features:
            return sizes
    has_mlp = "mlp" in " ".join(vars(parent).get("_modules", {}))  # its rows may follow in the same matrix
    for sizes in candidates[:1]:
        if has_mlp and sum(sizes[letter] for letter in letters) < out_features:
            return sizes
    return None


def splits_per_head(projection: Projection) -> bool:
    """Return whether a block splits the fused output head by head."""
    if len(projection.letters) < 3:
        return False
    kind: Any = type(projection.parent)  # mypy takes a module's class for unhashable
    return bool(PER_HEAD.search(source_of(kind))) or projection.name in PER_HEAD_NAMES


def heads_of(parent: nn.Module, in_features: int) -> Heads | None:
    """Read an attention's sizes from the block or its configuration; None if they are not there."""
    queries = number(parent, QUERY_HEADS)
    if not queries:
        return None
    width = number(parent, HEAD_WIDTH) or in_features // queries
    keys = number(parent, KEY_HEADS) or (1 if getattr(parent, "multi_query", False) is True else queries)
    return Heads(queries, keys, width)


def number(parent: nn.Module, names: tuple[str, ...]) -> int | None:
    """Read the first positive integer of these names, from the block itself before its configuration."""
    for holder in (parent, getattr(parent, "config", None)):
        for name in names:
            value: Any = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None

"""What experts add to at a target: all of a projection, or the key and the value rows of a fused one."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from prw.errors import TargetError
from prw.kernels import OutputSlice
from prw.layers import WHOLE
from prw.tuner.grouping import LATENT, unwrapped, widths_of
from prw.tuner.layouts import Layout, fused_layout, letters_of
from prw.tuner.naming import split
from prw.tuner.wrapping import module_at

WRITTEN = re.compile(r"(?:(?P<groups>\d+)\*\()?(?P<items>[qkvx]\d*(?:\|[qkvx]\d*)*)\)?")
"""A layout as a user writes it: q|k|v, q64|k16|v16, 8*(q|k|v); x stands for rows of something else."""


def parts_of_target(
    model: nn.Module, path: str, letters: str, layout: str | None
) -> Mapping[str, OutputSlice | None]:
    """Tell which rows of a target get experts.

    Args:
        model: The model.
        path: The target.
        letters: Which of keys and values are wanted: "kv", "k" or "v"; "all" means every row.
        layout: How a fused projection is laid out, as the user says; None means by structure.

    Raises:
        TargetError: if the rows of a fused projection cannot be told; says how to name them.
    """
    block, name = split(path)
    target = module_at(model, path)
    in_features, out_features = widths_of(target)
    if isinstance(unwrapped(target), nn.MultiheadAttention):
        rows, letters = attention_rows(path, in_features, out_features), letters.replace("all", "kv")
    elif letters == "all":
        return WHOLE
    elif layout is not None:
        rows = read_layout(layout, path, out_features)
    else:
        parent = module_at(model, block)
        letters_there = letters_of(parent, name, in_features, out_features)
        if name.startswith(LATENT) or not {"k", "v"} <= set(letters_there):
            return WHOLE
        told = fused_layout(parent, name, in_features, out_features)
        if told is None:
            raise TargetError(ambiguous(path, in_features, out_features))
        rows = told
    if "" in rows:
        return WHOLE
    return {letter: rows[letter] for letter in "kv" if letter in letters and letter in rows}


def attention_rows(path: str, in_features: int, out_features: int) -> Layout:
    """Lay out nn.MultiheadAttention: three blocks, queries first.

    Raises:
        TargetError: if its keys and values read inputs of unequal width, for which there is no one router.
    """
    if not in_features:
        raise TargetError(
            f"{path} is an nn.MultiheadAttention whose kdim and vdim differ, so that no router can read the "
            "input of both. Use separate projections (nn.Linear) for its keys and values."
        )
    width = out_features // 3
    return {
        "k": OutputSlice(1, out_features, width, 2 * width),
        "v": OutputSlice(1, out_features, 2 * width, out_features),
    }


def read_layout(layout: str, path: str, out_features: int) -> Layout:
    """Read a layout as a user writes it.

    Raises:
        TargetError: if it is none, or does not fit the projection.
    """
    read = WRITTEN.fullmatch(layout.replace(" ", ""))
    items = [(item[0], int(item[1:] or 0)) for item in read["items"].split("|")] if read else []
    letters = [letter for letter, _ in items if letter != "x"]
    groups = int((read and read["groups"]) or 1)
    per_group, rest = divmod(out_features, max(groups, 1))
    open_items = sum(not size for _, size in items)
    left = per_group - sum(size for _, size in items)
    fits = groups > 0 and not rest and (left % open_items == 0 and left > 0 if open_items else left == 0)
    if not {"k", "v"} & set(letters) or len(set(letters)) != len(letters) or not fits:
        raise TargetError(
            f"layout={layout!r} does not fit {path}, whose output has {out_features} rows. Write the parts "
            "in their order: 'q|k|v' for equal blocks, 'q64|k16|v16|x32' for blocks of given sizes (x is "
            "something else), '8*(q|k|v)' for eight heads with a query, key and value each."
        )
    rows: Layout = {}
    start = 0
    for letter, size in items:
        stop = start + (size or left // open_items)
        if letter in "kv":
            rows[letter] = OutputSlice(groups, per_group, start, stop)
        start = stop
    return rows


def ambiguous(path: str, in_features: int, out_features: int) -> str:
    """Say that the rows of a fused projection cannot be told, and how to name them."""
    return (
        f"{path} ({in_features} -> {out_features}) is named like keys and values in one projection, but its "
        "width and its block's head counts do not tell which rows are which. Say it: "
        f"prw.inject(model, target=[{path!r}], layout='q|k|v') for three equal blocks, 'q64|k16|v16' for "
        "blocks of given sizes, '8*(q|k|v)' for eight heads with a query, key and value each; or leave it "
        f"out with exclude=[{path!r}]."
    )

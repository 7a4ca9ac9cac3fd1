"""Attention blocks, recognised by structure: which projections make their keys and values.

It looks at the names and widths of a block's projections and at its code, never at the model's class. Of a
joint attention "kv" takes the main stream, the image's, and leaves out what joins it, such as
`add_k_proj`/`add_v_proj` of the text in FLUX and `to_k_t`/`to_v_t` in HiDream, since in CoLoGen only source
tokens see experts. "all-kv" takes every stream; each is a site of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from prw.tuner.targets.projections import Projection, role_of, uses_of

Group = tuple[Projection, ...]
"""Projections that share a routing decision: a key and its value, or one projection alone."""

SUMMARIES = re.compile(r"(Compressor|Indexer)$")
"""Blocks that summarise tokens for an attention to choose from, as in DeepSeek's sparse attention."""


def group_pairs(projections: Iterable[Projection]) -> list[Group]:
    """Group projections: a key with the value of the same block and stream, any other by itself."""
    known = list(projections)
    by_kind = {kind_of(projection): projection for projection in known}
    groups: dict[str, Group] = {}
    for projection in known:
        group: Group = (projection,)
        if projection.role.letters in ("k", "v"):
            block, _, pattern = kind_of(projection)
            pair = tuple(by_kind[kind] for letter in "kv" if (kind := (block, letter, pattern)) in by_kind)
            group = pair if len(pair) == 2 and projection in pair else group
        groups.setdefault(group[0].path, group)
    return list(groups.values())


def kind_of(projection: Projection) -> tuple[str, str, tuple[str, ...]]:
    """Return what distinguishes a projection from all others: its block, letters and name pattern."""
    role = projection.role
    return (projection.block, role.letters, role.pattern if role.letters else (projection.name,))


def find_by_structure(projections: Iterable[Projection], target: str) -> list[Group]:
    """List the projections of attention blocks that make keys and values.

    Args:
        projections: All layers of a model that can carry experts.
        target: "kv", "k" or "v" of each block's main stream, or "all-kv" of all its streams.
    """
    groups, letters = group_pairs(projections), target.removeprefix("all-")
    if letters == target:
        groups = main_streams(groups)
    return [made for group in groups if (made := makers(group, letters))]


def main_streams(groups: Iterable[Group]) -> list[Group]:
    """Leave out streams that were added to a block, and all but the main one of those that meet in it."""
    groups = list(groups)
    main: dict[str, int] = {}
    for group in groups:
        block, role = group[0].block, group[0].role
        makes_both = len(group) == 2 or {"k", "v"} <= set(role.letters)
        if makes_both and not role.added:
            main[block] = min(role.joined, main.get(block, role.joined))
    return [
        group
        for group in groups
        if not group[0].role.added and group[0].role.joined <= main.get(group[0].block, group[0].role.joined)
    ]


def makers(group: Group, letters: str) -> Group:
    """Keep of a group what makes the keys ("k"), the values ("v") or both ("kv") of an attention."""
    first = group[0]
    if first.is_attention:
        return (first,)
    if is_replaced(first) or first.is_latent or SUMMARIES.search(type(first.parent).__name__):
        return ()
    if len(group) == 2:
        wanted = {"kv": group, "k": group[:1], "v": group[1:]}[letters]
        return () if is_feed_forward(*group) else wanted
    return group if {"k", "v"} <= set(first.letters) or keys_are_values(first) else ()


def is_replaced(projection: Projection) -> bool:
    """Return whether diffusers has fused the block, so that its separate projections are no longer called."""
    fused = getattr(projection.parent, "fused_projections", False) is True
    return fused and len(projection.role.letters) == 1


def is_bypassed(projection: Projection) -> bool:
    """Return whether the block, or its processor, computes with the projection's weight and never calls it.

    Experts would have no effect there, as in WavLM, which hands the weights to torch's attention.
    """
    processor = getattr(projection.parent, "processor", None)
    kinds: list[Any] = [type(projection.parent), *([] if processor is None else [type(processor)])]
    return {use for kind in kinds for use in uses_of(kind, projection.name)} == {"weight"}


def keys_are_values(projection: Projection) -> bool:
    """Return whether a key projection makes the values too: its block has a place for theirs, left empty."""
    name, parent = projection.name, projection.parent
    if projection.role.letters != "k":
        return False
    missing = object()
    others = {name.replace("k_", "v_", 1), name.replace("key", "value", 1)} - {name}
    return any(getattr(parent, other, missing) is None for other in others)


def is_feed_forward(key: Projection, value: Projection) -> bool:
    """Return whether a "key" and a "value" are the two layers of a feed-forward block, as in RWKV."""
    has_query = any(role_of(name).letters == "q" for name, _ in key.parent.named_children())
    chained = key.in_features != value.in_features and key.out_features == value.in_features
    return chained and not has_query


def site_name(group: Group) -> str:
    """Name a site after its block, with the stream where it is not the block's main one.

    A projection that does not make both keys and values is a site that has its own path for a name.
    """
    first = group[0]
    if len(group) == 1 and (not {"k", "v"} <= set(first.role.letters) or first.is_latent):
        return first.path
    stream = "text" if first.role.stream == ("add",) else "_".join(first.role.stream)
    return ".".join(part for part in (first.block, stream) if part) or "model"

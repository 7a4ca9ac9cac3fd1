"""What the name of a projection says: whether it makes queries, keys or values, and of which stream."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

WORDS = {
    **dict.fromkeys(("q", "query", "queries"), "q"),
    **dict.fromkeys(("k", "key", "keys"), "k"),
    **dict.fromkeys(("v", "value", "values", "val"), "v"),
}
GLUED = re.compile(r"w?([qkv]{1,2}|qkvz?|[qkv]{3})")
"""Letters in one word: qkv, kv, wk, wqkv; qkvz has a gate behind."""
SAYS_NOTHING = frozenset(
    ("to", "proj", "projection", "project", "lin", "linear", "layer", "fc", "w", "head", "self", "attn")
).union(("cross", "attention", "impl", "content", "a", "b", "with", "mqa", "mlp"))
"""Words besides the letters that do not name a stream."""
ADDED = frozenset(("add", "added", "ip", "custom", "delayed"))
"""Words of streams that were added to an attention block; "kv" leaves these out unless they are named."""
JOINED = {**dict.fromkeys(("img", "image"), 1), **dict.fromkeys(("t", "txt", "text", "context"), 2)}
"""Words of streams that meet in one joint attention, ranked by how far each is from being the main stream:
that is the plainly named one (0), else the image's. "kv" takes the main one, as in FLUX."""
NO_PROJECTION = frozenset(("mapper", "opreact", "points", "norm", "layernorm", "bias", "gate"))
"""Words of layers that serve an attention but make no keys or values themselves."""
WITHOUT_LETTERS = {"c_attn": "qkv", "att_proj": "qkv"}
"""Fused projections whose names have no letters, and what they usually make."""
WRAPPED = frozenset(("linear", "base"))
"""Names of a linear layer inside a module that has the projection's name, as in `k_proj.linear`."""


class Role(NamedTuple):
    """What a projection's name says.

    Attributes:
        letters: Which of q, k and v it makes, in that order; empty if the name does not say.
        stream: Words that distinguish it from another projection of the same kind in one block; often none.
        pattern: The name with its letters left open, equal for a key and a value that belong together.
    """

    letters: str
    stream: tuple[str, ...] = ()
    pattern: tuple[str, ...] = ()

    @property
    def added(self) -> bool:
        """Whether its stream was added to the block."""
        return not ADDED.isdisjoint(self.stream)

    @property
    def joined(self) -> int:
        """How far its stream is from being the main one of a joint attention; 0 for a plain name."""
        return max((JOINED.get(word, 0) for word in self.stream), default=0)


def split(path: str) -> tuple[str, str]:
    """Split a projection's path into its attention block and its name there."""
    block, _, name = path.rpartition(".")
    outer, _, around = block.rpartition(".")
    if name in WRAPPED and role_of(around).letters:
        return outer, around
    return block, name


@functools.cache
def role_of(name: str) -> Role:
    """Read the name that a projection has in its block."""
    if name.lower() in WITHOUT_LETTERS:
        return Role(WITHOUT_LETTERS[name.lower()], (), (name.lower(),))
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().split("_")
    letters, pattern = "", []
    for word in words:
        glued = GLUED.fullmatch(word)
        found = WORDS.get(word) or (glued.group(1).rstrip("z") if glued else "")
        letters += found
        pattern.append("*" if found else word)
    if not letters or len(set(letters)) != len(letters) or not NO_PROJECTION.isdisjoint(pattern):
        return Role("")
    kept = tuple(word for word in pattern if word != "content")
    return Role(letters, tuple(w for w in kept if w != "*" and w not in SAYS_NOTHING), kept)

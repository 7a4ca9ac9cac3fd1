"""The layers of a model that can carry experts: what names, widths and the code around each of them say."""

from __future__ import annotations

import dis
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple

from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import nn

from prw.errors import first_few
from prw.tuner.module_paths import module_at, plain_path

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

LATENT = "kv_a_"
"""Start of the projection that compresses tokens in multi-head latent attention. Its output is cached, and
the second projection (`kv_b_proj`) makes the keys and values of every head from the cache, so that one gets
the experts: its decisions depend on nothing but what is cached."""
RETURNS_SCALE = re.compile(r"act_scaling_factor")
"""What the code of a linear layer contains that returns a scale beside its output, as in I-BERT."""
KINDS_SHOWN = 40
"""How many kinds of layers a message lists."""
NOT_LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
READS = ("LOAD_ATTR", "LOAD_METHOD")
"""Instructions that read an attribute; up to Python 3.11 a called one has an instruction of its own."""
DESCRIBES = frozenset(("bias", "data", "device", "dtype", "shape", "copy_", "in_features", "out_features"))
"""Attributes of a projection or its weight that a block reads, or fills, without computing with them."""


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


@dataclass(frozen=True, eq=False)
class Projection:
    """A layer that can carry experts.

    Attributes:
        path: Its path in the model, without wrappers.
        block: Path of the attention block that it belongs to.
        name: Its name in that block.
        module: The layer, without wrappers around it; another adapter may be.
        parent: The block.
        in_features: Width of the input; 0 where the layer does not say.
        out_features: Width of the output; of an nn.MultiheadAttention that of queries, keys and values.
    """

    path: str
    block: str
    name: str
    module: nn.Module
    parent: nn.Module
    in_features: int
    out_features: int

    @property
    def role(self) -> Role:
        """What its name says."""
        return role_of(self.name)

    @property
    def letters(self) -> str:
        """Which of q, k and v it makes: by its name, or as an attention's `in_proj` of threefold width."""
        kind = type(self.parent).__name__.lower()
        attention = "attention" in kind or "attn" in kind
        if self.name == "in_proj" and self.out_features == 3 * self.in_features and attention:
            return "qkv"
        return self.role.letters

    @property
    def is_attention(self) -> bool:
        """Whether it is an nn.MultiheadAttention as a whole."""
        return isinstance(unwrapped(self.module), nn.MultiheadAttention)

    @property
    def is_latent(self) -> bool:
        """Whether it compresses tokens for a second projection, which makes the keys and values."""
        return self.name.startswith(LATENT)


Known = Mapping[str, Projection]
"""The layers of a model that can carry experts, by path."""


def projections_of(model: nn.Module) -> dict[str, Projection]:
    """List the layers that can carry experts by path, in the model's order.

    The insides of adapters and of nn.MultiheadAttention are left out.
    """
    found: dict[str, Projection] = {}
    inside: tuple[str, ...] = ("",) if isinstance(model, nn.MultiheadAttention) else ()
    for name, module in model.named_modules():
        if not name or (inside and name.startswith(inside)):
            continue
        if can_carry_experts(module):
            path = plain_path(name)
            block, last = split(path)
            found[path] = Projection(path, block, last, module, module_at(model, block), *widths_of(module))
        if isinstance(module, BaseTunerLayer | nn.MultiheadAttention):
            inside = (*inside, name + ".")
    return found


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside a PEFT layer, or the module itself."""
    inner: nn.Module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return inner


def can_carry_experts(module: nn.Module) -> bool:
    """Return whether a module is linear, of a kind that PEFT knows, or an nn.MultiheadAttention."""
    inner = unwrapped(module)
    if isinstance(inner, nn.Linear | nn.MultiheadAttention):
        return True
    return is_quantised(inner) or (type(inner).__name__ == "Conv1D" and not isinstance(inner, NOT_LINEAR))


def is_quantised(module: nn.Module) -> bool:
    """Return whether a module is a quantised linear layer with its own class: no submodules, but widths."""
    if isinstance(module, NOT_LINEAR) or any(True for _ in module.children()):
        return False
    kind: Any = type(module)  # mypy takes a module's class for unhashable
    has_width = any(hasattr(module, name) for name in ("in_features", "infeatures"))
    if not has_width or RETURNS_SCALE.search(source_of(kind)):
        return False
    return "Linear" in kind.__name__ and all(widths_of(module))


def widths_of(module: nn.Module) -> tuple[int, int]:
    """Read the input and output width of a projection; zeros where it does not say."""
    inner: Any = unwrapped(module)
    if isinstance(inner, nn.MultiheadAttention):
        return (inner.kdim if inner.kdim == inner.vdim else 0), 3 * inner.embed_dim
    if not isinstance(inner, nn.Linear) and hasattr(inner, "in_features") and hasattr(inner, "out_features"):
        return int(inner.in_features), int(inner.out_features)
    in_features, out_features = _get_in_out_features(inner)
    return in_features or 0, out_features or 0


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


# ----------------------------------------------------------------------------------- the code of a block


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
    """Return whether a chain of attributes begins with a name and reads more than a description of it."""
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

"""Finds attention blocks by structure, and groups their key and value projections into sites."""

from __future__ import annotations

import dis
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import nn

from prw.tuner.layouts import code_of, letters_of, methods_of
from prw.tuner.naming import Role, role_of, split
from prw.tuner.wrapping import module_at, plain_path

LATENT = "kv_a_"
"""Start of the projection that compresses tokens in multi-head latent attention. Its output is cached, and
the second projection (`kv_b_proj`) makes the keys and values of every head from the cache, so that one gets
the experts: its decisions depend on nothing but what is cached."""
SUMMARIES = re.compile(r"(Compressor|Indexer)$")
"""Blocks that sum up tokens for an attention to choose from, as in DeepSeek's sparse attention."""
GIVES_SEVERAL = re.compile(r"act_scaling_factor")
"""What the code of a linear layer looks like that gives a scale beside its output, as in I-BERT."""
READS = ("LOAD_ATTR", "LOAD_METHOD")
"""Instructions that read an attribute; up to Python 3.11 a called one has an instruction of its own."""
DESCRIBES = frozenset(("bias", "data", "device", "dtype", "shape", "copy_", "in_features", "out_features"))
"""Attributes of a projection or its weight that a block reads, or fills, without computing with them."""
NOT_LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


def unwrapped(module: nn.Module) -> nn.Module:
    """Give what a PEFT layer is around, or the module itself."""
    inner: nn.Module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return inner


def adaptable(module: nn.Module) -> bool:
    """Tell whether a module can carry experts: linear of a kind that PEFT knows, or torch's own attention."""
    inner = unwrapped(module)
    if isinstance(inner, nn.Linear | nn.MultiheadAttention):
        return True
    return is_quantised(inner) or (type(inner).__name__ == "Conv1D" and not isinstance(inner, NOT_LINEAR))


def is_quantised(module: nn.Module) -> bool:
    """Tell whether a module is a quantised linear layer of a class of its own: without parts, with widths."""
    if isinstance(module, NOT_LINEAR) or any(True for _ in module.children()):
        return False
    says = any(hasattr(module, name) for name in ("in_features", "infeatures"))
    kind: Any = type(module)
    says = says and not GIVES_SEVERAL.search(code_of(kind))
    return says and "Linear" in type(module).__name__ and all(widths_of(module))


def widths_of(module: nn.Module) -> tuple[int, int]:
    """Read input and output width of what a module projects; zeros where it does not say."""
    inner: Any = unwrapped(module)
    if isinstance(inner, nn.MultiheadAttention):
        return (inner.kdim if inner.kdim == inner.vdim else 0), 3 * inner.embed_dim
    if not isinstance(inner, nn.Linear) and hasattr(inner, "in_features") and hasattr(inner, "out_features"):
        return int(inner.in_features), int(inner.out_features)
    in_features, out_features = _get_in_out_features(inner)
    return in_features or 0, out_features or 0


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """List what can carry experts by path, leaving out the insides of adapters and of torch's attention."""
    found: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ("",) if isinstance(model, nn.MultiheadAttention) else ()
    for name, module in model.named_modules():
        if not name or (inside and name.startswith(inside)):
            continue
        if adaptable(module):
            found[plain_path(name)] = module
        if isinstance(module, BaseTunerLayer | nn.MultiheadAttention):
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
    placed: set[str] = set()
    partners = {key_of(name): name for name in known}
    for name in known:
        if name in placed:
            continue
        members, role = together(name, partners), role_of(split(name)[1])
        fused = {"k", "v"} <= set(role.letters) and not split(name)[1].startswith(LATENT)
        whole_block = len(members) > 1 or fused
        site = site_name(members[0], role) if whole_block else name
        sites[site if site not in sites else name] = members
        placed.update(members)
    return sites


def key_of(name: str) -> tuple[str, str, tuple[str, ...]]:
    """Tell what makes a projection the one of its kind in its block: block, letters and pattern."""
    block, last = split(name)
    role = role_of(last)
    return (block, role.letters, role.pattern) if role.letters else (block, "", (last,))


def together(name: str, partners: Mapping[tuple[str, str, tuple[str, ...]], str]) -> tuple[str, ...]:
    """List a projection and what belongs to it, key before value."""
    block, letters, pattern = key_of(name)
    pair = [partners.get((block, letter, pattern)) for letter in "kv"] if letters in ("k", "v") else []
    members = tuple(part for part in pair if part is not None)
    return members if len(members) == 2 and name in members else (name,)


def site_name(member: str, role: Role) -> str:
    """Name a site after its block, and after its stream where it is not the block's main one."""
    block = split(member)[0]
    stream = "text" if role.stream == ("add",) else "_".join(role.stream)
    return ".".join(part for part in (block, stream) if part) or "model"


def structural(model: nn.Module, found: Mapping[str, nn.Module], target: str) -> list[str]:
    """Pick key and value projections of attention blocks, in the model's order.

    Args:
        model: The model.
        found: What can carry experts, by path.
        target: "kv", "k" or "v" of each block's main stream, or "all-kv" of all its streams.
    """
    rows, sites = target.removeprefix("all-"), list(sites_of(found).values())
    if rows == target:
        sites = of_main_streams(sites)
    picked = {name for members in sites for name in wanted(model, found, members, rows)}
    return [name for name in found if name in picked]


def of_main_streams(sites: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Leave out streams that were added to a block, and all but the main one of those that meet in it."""
    roles = [(members, split(members[0])[0], role_of(split(members[0])[1])) for members in sites]
    main: dict[str, int] = {}
    for members, block, role in roles:
        makes_both = len(members) == 2 or {"k", "v"} <= set(role.letters)
        if makes_both and not role.added:
            main[block] = min(role.joined, main.get(block, role.joined))
    return [
        members
        for members, block, role in roles
        if not role.added and role.joined <= main.get(block, role.joined)
    ]


def wanted(
    model: nn.Module, found: Mapping[str, nn.Module], members: tuple[str, ...], target: str
) -> Iterator[str]:
    """Go through those projections of a site that make keys, values, or what `target` says of both."""
    block, last = split(members[0])
    parent, role = module_at(model, block), role_of(last)
    if isinstance(unwrapped(found[members[0]]), nn.MultiheadAttention):
        yield members[0]
    elif replaced(parent, role) or serves(parent, last):
        return
    elif len(members) == 2:
        if not is_feed_forward(parent, *(found[name] for name in members)):
            yield from {"kv": members, "k": members[:1], "v": members[1:]}[target]
    else:
        letters = letters_of(parent, last, *widths_of(found[members[0]]))
        if {"k", "v"} <= set(letters) or keys_are_values(parent, last, role):
            yield members[0]


def serves(parent: nn.Module, name: str) -> bool:
    """Tell whether a projection prepares tokens for an attention, and makes no keys and values of heads."""
    return name.startswith(LATENT) or SUMMARIES.search(type(parent).__name__) is not None


def replaced(parent: nn.Module, role: Role) -> bool:
    """Tell whether diffusers has fused a block, so that its separate projections are not called any more."""
    return getattr(parent, "fused_projections", False) is True and len(role.letters) == 1


def bypassed(parent: nn.Module, name: str) -> bool:
    """Tell whether a block, or its processor, computes with a projection's weight and never calls it.

    Experts would have no effect there, as in WavLM, which hands the weights to torch's attention.
    """
    kinds: list[Any] = [type(parent)]
    if (processor := getattr(parent, "processor", None)) is not None:
        kinds.append(type(processor))
    uses = {use for kind in kinds for use in uses_of(kind, name)}
    return uses == {"weight"}


@functools.cache
def uses_of(kind: type[nn.Module], name: str) -> frozenset[str]:
    """Tell how the methods of a class use an attribute: "weight" where they take its weight, else "other".

    Reading only what describes it (its bias, its weight's dtype) is no use. This reads the compiled methods
    and not their source, which a class made in a notebook or by `exec` does not have.
    """
    uses: set[str] = set()
    for method in methods_of(kind):
        loads = list(attribute_chains(method.__code__))
        uses.update(
            "weight" if chain[1:2] == ("weight",) else "other" for chain in loads if is_use(chain, name)
        )
    return frozenset(uses)


def is_use(chain: tuple[str, ...], name: str) -> bool:
    """Tell whether a chain of attributes begins with a name and goes on to more than a description of it."""
    if chain[:1] != (name,):
        return False
    described = chain[1:2] and chain[1] != "weight" and chain[1] in DESCRIBES
    return not described and not (chain[1:2] == ("weight",) and chain[2:3] and chain[2] in DESCRIBES)


def attribute_chains(code: CodeType) -> Iterator[tuple[str, ...]]:
    """Go through the runs of attribute reads in a function, each also without its first reads.

    `self.qkv.weight.dtype` gives (qkv, weight, dtype), (weight, dtype) and (dtype).
    """
    run: list[str] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname in READS:
            run.append(str(instruction.argval))
            continue
        yield from (tuple(run[start:]) for start in range(len(run)))
        run = []
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from attribute_chains(inner)


def keys_are_values(parent: nn.Module, name: str, role: Role) -> bool:
    """Tell whether a key projection makes the values too: its block has a place for one, left empty."""
    if role.letters != "k":
        return False
    missing = object()
    names = {name.replace("k_", "v_", 1), name.replace("key", "value", 1)} - {name}
    return any(getattr(parent, other, missing) is None for other in names)


def is_feed_forward(parent: nn.Module, key: nn.Module, value: nn.Module) -> bool:
    """Tell whether a "key" and a "value" are the two layers of a feed-forward block, as in RWKV."""
    (key_in, key_out), (value_in, _) = widths_of(key), widths_of(value)
    has_query = any(role_of(name).letters == "q" for name, _ in parent.named_children())
    return key_in != value_in and key_out == value_in and not has_query

"""What is measured, most important first: the budget ends the list wherever it is spent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks.gpu.schema import At, Mode, Routing
from benchmarks.schema import Pass

Kind = Literal["checks", "ceilings", "kernels", "peers", "probes", "memory", "flux"]
KERNELS = ("dense", "grouped", "triton")
"""Kernels by name, the one that has run the least on real hardware last: a lost device costs least there."""
PLAIN, STACKED = "two nn.Linear", "one stacked nn.Linear"
LORA, LORA_32 = "PEFT LoRA", "PEFT LoRA, float32 adapters"
ROUTED_PEERS = ("PEFT Arrow", "PEFT X-LoRA layer", "MixLoRA-style loop", "transformers grouped_mm")
COMPILED = "torch.compile of reference"
NEVER_RECORDED = ("MixLoRA-style loop", COMPILED)
"""Cases whose shapes follow from the routing: they wait for the device, and no graph can hold them."""


@dataclass(frozen=True)
class Task:
    """One group of the result.

    Attributes:
        name: Of the group.
        kind: What is done.
        points: Where.
        passes: In which pass.
        cases: Peers that take part, or the kernel that is checked.
    """

    name: str
    kind: Kind
    points: tuple[At, ...] = ()
    passes: Pass = "forward"
    cases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        width: d.
        tokens: T of the main points, of the small ones and of the one large one.
        ranks: The ranks; the last one is where peers are compared.
        pools: Numbers of experts.
        rounds: Rounds of each of the two repeats.
        skewed: Rank and experts of the skew sweep.
        check: Rank and experts of the checks in 16 bits.
        flux: Heads, features of a head, patches along an edge, text tokens.
    """

    width: int = 3072
    tokens: tuple[int, int, int] = (4096, 1024, 32768)
    ranks: tuple[int, int, int] = (16, 64, 128)
    pools: tuple[int, ...] = (1, 2, 4, 8, 64)
    rounds: int = 15
    skewed: tuple[int, int] = (64, 8)
    check: tuple[int, int] = (64, 8)
    flux: tuple[int, int, int, int] = (24, 128, 64, 512)


SIZES: dict[Mode, Sizes] = {
    "full": Sizes(),
    "quick": Sizes(rounds=5),
    "rehearsal": Sizes(
        width=64, tokens=(64, 32, 128), ranks=(8, 16, 24), pools=(1, 2, 3), rounds=1, skewed=(8, 3),
        check=(8, 4), flux=(2, 32, 4, 5),
    ),
}  # fmt: skip
ROUTINGS: tuple[Routing, ...] = ("uniform", "90/10", "all to one", "half empty", "blobs")


def small_check(sizes: Sizes) -> At:
    """Give the odd sizes at which float32 is checked."""
    return At(tokens=4 * 83, width=min(sizes.width, 192), rank=12, experts=5, dtype="float32")


def large_check(sizes: Sizes) -> At:
    """Give the sizes at which 16 bits are checked."""
    rank, experts = sizes.check
    return At(tokens=sizes.tokens[1], width=sizes.width, rank=rank, experts=experts)


def kernels(
    sizes: Sizes, tokens: int, rank: int, passes: Pass, granularity: Literal["token", "sample"] = "token",
    pools: tuple[int, ...] | None = None,
) -> Task:  # fmt: skip
    """Every kernel beside the plain projections, at every size of the pool."""
    points = tuple(
        At(tokens=tokens, width=sizes.width, rank=rank, experts=experts, granularity=granularity)
        for experts in pools or sizes.pools
    )
    ending = "" if granularity == "token" else "-sample"
    return Task(f"kernels-t{tokens}-r{rank}{ending}-{passes}", "kernels", points, passes, KERNELS)


def skew(sizes: Sizes, passes: Pass) -> Task:
    """Every kernel under uneven routing."""
    rank, experts = sizes.skewed
    at = At(tokens=sizes.tokens[0], width=sizes.width, rank=rank, experts=experts)
    points = tuple(at.model_copy(update={"routing": routing}) for routing in ROUTINGS)
    return Task(f"skew-t{at.tokens}-r{rank}-{passes}", "kernels", points, passes, KERNELS)


def peers(sizes: Sizes, experts: int, passes: Pass, cases: tuple[str, ...], name: str = "peers") -> Task:
    """The library as a whole, router included, beside peers."""
    at = At(tokens=sizes.tokens[0], width=sizes.width, rank=sizes.ranks[-1], experts=experts)
    return Task(f"{name}-t{at.tokens}-r{at.rank}-n{experts}-{passes}", "peers", (at,), passes, cases)


def tasks(mode: Mode) -> list[Task]:
    """List everything of a mode, most important first."""
    sizes = SIZES[mode]
    found = list(first_tasks(sizes))
    if mode == "full":
        found += more_tasks(sizes)
    if mode == "rehearsal":
        found += one_of_each(sizes)
    return found


def one_of_each(sizes: Sizes) -> Iterator[Task]:
    """Give, of what only a full run measures, one task of each kind."""
    seen: set[str] = {"ceilings"}
    for task in more_tasks(sizes):
        kind = task.kind + task.passes if task.kind == "peers" else task.name.partition("-")[0]
        if task.cases != (COMPILED,) and (kind not in seen or task.points[0].granularity == "sample"):
            seen.add(kind)
            yield task


def first_tasks(sizes: Sizes) -> Iterator[Task]:
    """Give what a quick run measures: correctness, ceilings, the main points, the nearest peers."""
    main, few, high = sizes.tokens[0], sizes.ranks[0], sizes.ranks[-1]
    for kernel in KERNELS:
        yield Task(f"checks-{kernel}", "checks", cases=(kernel,))
    points = tuple(At(tokens=tokens, width=sizes.width, rank=0, experts=0) for tokens in sizes.tokens)
    yield Task("ceilings", "ceilings", points)
    yield kernels(sizes, main, high, "forward")
    yield kernels(sizes, main, few, "forward")
    yield peers(sizes, 1, "forward", (LORA, LORA_32))
    yield kernels(sizes, main, high, "training")


def more_tasks(sizes: Sizes) -> Iterator[Task]:
    """Give the rest of a full run."""
    main, small, large = sizes.tokens
    few, middle, high = sizes.ranks
    yield peers(sizes, 1, "training", (LORA, LORA_32))
    for experts in sizes.pools[2:4]:
        yield peers(sizes, experts, "forward", ROUTED_PEERS)
        yield peers(sizes, experts, "training", ROUTED_PEERS)
    yield kernels(sizes, main, middle, "forward")
    for rank in (high, few):
        yield kernels(sizes, small, rank, "forward", pools=sizes.pools[:4])
    yield Task("probes", "probes", (At(tokens=main, width=sizes.width, rank=high, experts=1),))
    yield memory(sizes)
    yield kernels(sizes, main, few, "training")
    yield kernels(sizes, main, middle, "training")
    yield skew(sizes, "forward")
    yield skew(sizes, "training")
    for passes in ("forward", "training"):
        yield kernels(sizes, main, high, passes, "sample", pools=sizes.pools[:4])
    for rank in (few, high):
        yield Task(f"flux-r{rank}", "flux", (At(tokens=main, width=sizes.width, rank=rank, experts=0),))
    yield kernels(sizes, large, high, "forward", pools=sizes.pools[:1])
    yield kernels(sizes, small, high, "training", pools=sizes.pools[:4])
    yield kernels(sizes, small, middle, "forward", pools=sizes.pools[:4])
    yield peers(sizes, sizes.pools[2], "forward", (COMPILED,), "compiled")


def memory(sizes: Sizes) -> Task:
    """Peak memory of a forward and backward, with everybody."""
    points = tuple(
        At(tokens=sizes.tokens[0], width=sizes.width, rank=sizes.ranks[-1], experts=experts)
        for experts in (1, *sizes.pools[2:4])
    )
    return Task("memory", "memory", points, "training", ROUTED_PEERS)

"""What is timed, on a CPU and on a GPU: every group of cases that are measured in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from benchmarks.schema import Granularity, Kind, Pass, Point, Routing, SetName

PASSES: tuple[Pass, ...] = ("forward", "training")
GRANULARITIES: tuple[Granularity, ...] = ("token", "sample")
PLAIN, STACKED = "two nn.Linear", "one stacked nn.Linear"
LORA, LORA_32 = "PEFT LoRA", "PEFT LoRA, float32 adapters"
OURS = "prw"
"""The pool with the kernel that it takes by itself; `prw dense` and so on force one."""
ROUTED_PEERS = ("PEFT X-LoRA layer", "PEFT Arrow", "MixLoRA-style loop", "transformers grouped_mm")
COMPILED = "torch.compile of reference"
PLAIN_TEXT, KONTEXT = "FluxPipeline, text alone", "FluxKontextPipeline"
CACHED, UNCACHED = "CoLoGen, source cached", "CoLoGen, source at every step"
NEVER_RECORDED = ("MixLoRA-style loop", COMPILED)
"""Cases whose shapes follow from the routing: they wait for the device, and no graph can hold them."""
GPU_KERNELS = ("dense", "grouped", "triton")
"""Kernels by name, the one that has run the least on real hardware last: a lost device costs least there."""
CPU_KERNELS = ("reference", "dense", "grouped")


@dataclass(frozen=True)
class Group:
    """Cases that are measured together: one result.

    Attributes:
        kind: Which question it answers.
        name: Of its result's file.
        passes: Forward, or forward and backward.
        cases: Competitor and point; the first is what the others are compared with.
        budget_s: Seconds that the rounds may take, as far as the least number of rounds allows.
        rounds: If not 0, how many rounds there are, whatever they take.
        size: Further sizes, by a kind's own meaning.
    """

    kind: Kind
    name: str
    passes: Pass = "forward"
    cases: tuple[tuple[str, Point], ...] = ()
    budget_s: float = 0
    rounds: int = 0
    size: tuple[int, ...] = ()

    @property
    def point(self) -> Point:
        """Give the point of a group that has one."""
        return self.cases[0][1]


def at(tokens: int, width: int, rank: int = 0, experts: int = 0, **more: str) -> Point:
    """Write a point briefly."""
    return Point(tokens=tokens, width=width, rank=rank, experts=experts, **more)  # type: ignore[arg-type]


# On a CPU: three sets of one grid.

Sizes = tuple[tuple[int, int, tuple[int, ...], tuple[int, ...]], ...]
"""Tokens and width, with the ranks and pool sizes that are measured there."""


@dataclass(frozen=True)
class Extent:
    """How much of the grid a set covers.

    Attributes:
        grid: Sizes.
        peers: Points of the comparison with every peer.
        kernels: Sizes for kernels by name.
        skew: Where uneven routing is measured.
        memory: Tokens, width and ranks where activation memory is counted.
        flux: Heads, features of a head, patches along an edge, text tokens and rank of each FLUX.
        generation: The same of the FLUX that generates whole pictures, and the steps.
        budget_s: Seconds for each group's rounds; for those of FLUX; for those of generation.
        compiles: Whether torch.compile takes part; compiling takes half a minute.
    """

    grid: Sizes
    peers: tuple[Point, ...]
    kernels: Sizes
    skew: tuple[Point, ...]
    memory: tuple[tuple[int, int, tuple[int, ...]], ...]
    flux: tuple[tuple[int, ...], ...]
    generation: tuple[int, ...]
    budget_s: tuple[float, float, float]
    compiles: bool = True


DENSE_UP_TO = 1024
"""Largest rank times experts at which the dense kernel is measured by name on a CPU."""
RANKS, POOLS = (16, 64, 128), (1, 2, 5, 8, 64)
TINY_FLUX = (2, 32, 4, 5, 4)
EXTENTS: dict[SetName, Extent] = {
    "smoke": Extent(
        grid=((32, 64, (4,), (1, 3)),),
        peers=(at(32, 64, 4, 3),),
        kernels=((32, 64, (4,), (3,)),),
        skew=(at(32, 64, 4, 3),),
        memory=((32, 64, (4,)),),
        flux=(TINY_FLUX,),
        generation=(2, 32, 3, 5, 4, 2),
        budget_s=(0, 0, 0),
        compiles=False,
    ),
    "default": Extent(
        grid=(
            (256, 512, (16, 64), (1, 8, 64)),
            (1024, 1024, (16, 128), (1, 2, 5, 8, 64)),
            (1024, 3072, (16, 128), (1, 8)),
            (4096, 1024, (16,), (1, 8, 64)),
        ),
        peers=(at(1024, 1024, 16, 8),),
        kernels=((1024, 1024, (16, 128), (1, 8)),),
        skew=(at(1024, 1024, 64, 8),),
        memory=((1024, 1024, (16, 128)),),
        flux=((8, 128, 32, 512, 16),),
        generation=(4, 128, 16, 32, 24, 28),
        budget_s=(12, 20, 60),
    ),
    "full": Extent(
        grid=tuple((t, d, RANKS, POOLS) for d, t in product((512, 1024, 3072), (256, 1024, 4096))),
        peers=(
            *(at(1024, 1024, rank, 8) for rank in RANKS),
            at(4096, 1024, 16, 8),
            at(1024, 3072, 16, 8),
            at(1024, 512, 128, 8),
        ),
        kernels=tuple(
            (t, d, RANKS, POOLS) for t, d in ((256, 512), (1024, 1024), (4096, 1024), (1024, 3072))
        ),
        skew=(at(1024, 1024, 64, 8), at(4096, 1024, 64, 8)),
        memory=((1024, 1024, RANKS), (4096, 1024, RANKS), (4096, 3072, (16, 128))),
        # The last two are as wide as FLUX.1, with fewer tokens, so that a step takes seconds.
        flux=((8, 128, 32, 512, 16), (8, 128, 32, 512, 64), (24, 128, 24, 288, 16), (24, 128, 24, 288, 128)),
        # A rank of 48 to a width of 1024, and 24 to 512, is a little more than FLUX.1's 128 to 3072.
        generation=(8, 128, 32, 128, 48, 28),
        budget_s=(25, 60, 240),
    ),
}


def cpu_groups(chosen: SetName) -> list[Group]:
    """List the groups of a CPU's set."""
    extent, found = EXTENTS[chosen], []
    for make in (grid_groups, peer_groups, kernel_groups, skew_groups):
        for passes in PASSES:
            found += make(extent, passes)
    found.append(Group("memory", "memory", cases=tuple(memory_cases(extent)), rounds=1))
    for size in extent.flux:
        for passes, what in zip(PASSES, ("denoising", "training"), strict=True):
            name = f"flux-d{size[0] * size[1]}-r{size[4]}-{what}"
            found.append(Group("flux", name, passes, budget_s=extent.budget_s[1], size=size))
    heads, head, side, *_ = extent.generation
    name = f"generation-d{heads * head}-t{side**2}"
    found.append(Group("generation", name, budget_s=extent.budget_s[2], size=extent.generation))
    found.append(Group("input", "input", rounds=5))
    return found


def grid_groups(extent: Extent, passes: Pass) -> Iterator[Group]:
    """One group per tokens and width: every rank, pool size and granularity beside the plain projections."""
    for tokens, width, ranks, pools in extent.grid:
        cases = [(PLAIN, at(tokens, width))]
        cases += [(LORA, at(tokens, width, rank, 1)) for rank in ranks]
        for rank, experts, granularity in product(ranks, pools, GRANULARITIES):
            cases.append((OURS, at(tokens, width, rank, experts, granularity=granularity)))
        yield Group("grid", f"grid-t{tokens}-d{width}-{passes}", passes, tuple(cases), extent.budget_s[0])


def peer_groups(extent: Extent, passes: Pass) -> Iterator[Group]:
    """One group per point: prw beside every peer."""
    for point in extent.peers:
        one, tokens, width = point.but(experts=1), point.tokens, point.width
        cases = [(PLAIN, at(tokens, width)), (LORA, one), (OURS, one), (OURS, point)]
        cases += [(name, point) for name in ROUTED_PEERS]
        if extent.compiles:
            cases.append((COMPILED, point))
        name = f"peers-t{tokens}-d{width}-r{point.rank}-{passes}"
        yield Group("peers", name, passes, tuple(cases), extent.budget_s[0])


def kernel_groups(extent: Extent, passes: Pass) -> Iterator[Group]:
    """One group per tokens and width: every kernel by name, for the table of thresholds."""
    for tokens, width, ranks, pools in extent.kernels:
        cases = [(PLAIN, at(tokens, width))]
        for rank, experts in product(ranks, pools):
            # Dense computes every expert: far past the threshold it would only take time.
            left_out = set() if rank * experts <= DENSE_UP_TO else {"dense"}
            names = [f"prw {kernel}" for kernel in CPU_KERNELS if kernel not in left_out]
            cases += [(name, at(tokens, width, rank, experts)) for name in (*names, OURS)]
        yield Group(
            "kernels", f"kernels-t{tokens}-d{width}-{passes}", passes, tuple(cases), extent.budget_s[0]
        )


def skew_groups(extent: Extent, passes: Pass) -> Iterator[Group]:
    """One group per point: the same pool under even and skewed routing."""
    for point in extent.skew:
        cases = [(PLAIN, at(point.tokens, point.width)), (LORA, point.but(experts=1))]
        cases += [(OURS, point.but(routing=routing)) for routing in ("uniform", "90/10", "all to one")]
        name = f"skew-t{point.tokens}-d{point.width}-r{point.rank}-{passes}"
        yield Group("skew", name, passes, tuple(cases), extent.budget_s[0])


def memory_cases(extent: Extent) -> Iterator[tuple[str, Point]]:
    """List what is counted: each pool size by token, peers at N = 4 and N = 8."""
    for tokens, width, ranks in extent.memory:
        yield PLAIN, at(tokens, width)
        for rank in ranks:
            yield LORA, at(tokens, width, rank, 1)
            yield from ((OURS, at(tokens, width, rank, experts)) for experts in (1, 4, 8))
            yield OURS, at(tokens, width, rank, 8, granularity="sample")
            yield from ((name, at(tokens, width, rank, n)) for name in ROUTED_PEERS for n in (4, 8))


# On a GPU: one list, most important first; the budget ends it wherever it is spent.


@dataclass(frozen=True)
class GpuSizes:
    """How large everything is on a GPU.

    Attributes:
        width: d.
        tokens: T of the main points, of the small ones and of the one large one.
        ranks: The ranks; the last one is where peers are compared.
        pools: Numbers of experts.
        rounds: Rounds of each group.
        skewed: Rank and experts of the skew sweep.
        check: Rank and experts of the checks in 16 bits.
        flux: Heads, features of a head, patches along an edge, text tokens.
    """

    width: int = 3072
    tokens: tuple[int, int, int] = (4096, 1024, 32768)
    ranks: tuple[int, int, int] = (16, 64, 128)
    pools: tuple[int, ...] = (1, 2, 4, 8, 64)
    rounds: int = 30
    skewed: tuple[int, int] = (64, 8)
    check: tuple[int, int] = (64, 8)
    flux: tuple[int, int, int, int] = (24, 128, 64, 512)


GPU_SIZES: dict[SetName, GpuSizes] = {
    "full": GpuSizes(),
    "rehearsal": GpuSizes(
        width=64, tokens=(32, 64, 96), ranks=(8, 16, 24), pools=(1, 2, 3), rounds=1, skewed=(8, 3),
        check=(8, 4), flux=(2, 32, 4, 5),
    ),
}  # fmt: skip
ROUTINGS: tuple[Routing, ...] = ("uniform", "90/10", "all to one", "half empty", "blobs")


def gpu_at(sizes: GpuSizes, tokens: int, rank: int = 0, experts: int = 0, **more: str) -> Point:
    """Write a GPU's point briefly."""
    return at(tokens, sizes.width, rank, experts, dtype="bfloat16", **more)


def small_check(sizes: GpuSizes) -> Point:
    """Give the odd sizes at which float32 is checked."""
    return at(4 * 83, min(sizes.width, 192), 12, 5)


def large_check(sizes: GpuSizes) -> Point:
    """Give the sizes at which 16 bits are checked."""
    return gpu_at(sizes, sizes.tokens[1], *sizes.check)


def gpu_groups(chosen: SetName) -> list[Group]:
    """List the groups of a GPU's set, most important first."""
    sizes = GPU_SIZES[chosen]
    found = list(first_groups(sizes))
    return found + list(more_groups(sizes) if chosen == "full" else one_of_each(sizes))


def first_groups(sizes: GpuSizes) -> Iterator[Group]:
    """Give what matters most: correctness, ceilings, the main points, the nearest peer."""
    main, few, high = sizes.tokens[0], sizes.ranks[0], sizes.ranks[-1]
    for kernel in GPU_KERNELS:
        yield Group("checks", f"checks-{kernel}", cases=((kernel, large_check(sizes)),), rounds=1)
    points = tuple((PLAIN, gpu_at(sizes, tokens)) for tokens in sizes.tokens)
    yield Group("ceilings", "ceilings", cases=points, rounds=sizes.rounds)
    yield by_kernels(sizes, main, high, "forward")
    yield by_kernels(sizes, main, few, "forward")
    yield beside_peers(sizes, 1, "forward", (LORA, LORA_32))
    yield by_kernels(sizes, main, high, "training")


def more_groups(sizes: GpuSizes) -> Iterator[Group]:
    """Give the rest."""
    main, small, large = sizes.tokens
    few, middle, high = sizes.ranks
    pools = sizes.pools[:4]
    yield beside_peers(sizes, 1, "training", (LORA, LORA_32))
    for experts in sizes.pools[2:4]:
        yield beside_peers(sizes, experts, "forward", ROUTED_PEERS)
        yield beside_peers(sizes, experts, "training", ROUTED_PEERS)
    yield by_kernels(sizes, main, middle, "forward")
    for rank in (high, few):
        yield by_kernels(sizes, small, rank, "forward", pools=pools)
    yield Group("memory", "memory", "training", tuple(gpu_memory(sizes)), rounds=1)
    yield by_kernels(sizes, main, few, "training")
    yield by_kernels(sizes, main, middle, "training")
    for passes in PASSES:
        yield gpu_skew(sizes, passes)
    for passes in PASSES:
        yield by_kernels(sizes, main, high, passes, "sample", pools)
    for rank, passes in product((few, high), PASSES):
        size = (*sizes.flux, rank)
        yield Group("flux", f"flux-r{rank}-{passes}", passes, rounds=max(sizes.rounds // 2, 1), size=size)
    yield by_kernels(sizes, large, high, "forward", pools=sizes.pools[:1])
    yield by_kernels(sizes, small, high, "training", pools=pools)
    yield by_kernels(sizes, small, middle, "forward", pools=pools)
    yield beside_peers(sizes, sizes.pools[2], "forward", (COMPILED,), "compiled")


def one_of_each(sizes: GpuSizes) -> Iterator[Group]:
    """Give, of what only a full run measures, one group of each kind; nothing is compiled."""
    seen = {("kernels", "forward"), ("kernels", "training")}  # among the first groups
    for group in more_groups(sizes):
        new = (group.kind, group.passes) not in seen or "-sample-" in group.name
        if new and all(name != COMPILED for name, _ in group.cases):
            seen.add((group.kind, group.passes))
            yield group


def by_kernels(
    sizes: GpuSizes, tokens: int, rank: int, passes: Pass, granularity: Granularity = "token",
    pools: tuple[int, ...] | None = None,
) -> Group:  # fmt: skip
    """The pool by every kernel beside the plain projections, at every size of the pool."""
    points = [gpu_at(sizes, tokens, rank, n, granularity=granularity) for n in pools or sizes.pools]
    ending = "" if granularity == "token" else "-sample"
    return gpu_kernels(sizes, "kernels", f"kernels-t{tokens}-r{rank}{ending}-{passes}", passes, points)


def gpu_skew(sizes: GpuSizes, passes: Pass) -> Group:
    """The pool by every kernel under uneven routing."""
    tokens, (rank, experts) = sizes.tokens[0], sizes.skewed
    points = [gpu_at(sizes, tokens, rank, experts, routing=routing) for routing in ROUTINGS]
    return gpu_kernels(sizes, "skew", f"skew-t{tokens}-r{rank}-{passes}", passes, points)


def gpu_kernels(sizes: GpuSizes, kind: Kind, name: str, passes: Pass, points: list[Point]) -> Group:
    """Every kernel at some points, beside two plain projections and a stacked one."""
    plain = gpu_at(sizes, points[0].tokens)
    cases = [(PLAIN, plain), (STACKED, plain)]
    names = (OURS, *(f"prw {kernel}" for kernel in GPU_KERNELS))
    cases += [(name, point) for point in points for name in names]
    return Group(kind, name, passes, tuple(cases), rounds=sizes.rounds)


def beside_peers(
    sizes: GpuSizes, experts: int, passes: Pass, peers: tuple[str, ...], title: str = "peers"
) -> Group:
    """The pool as it comes, and with triton, beside peers."""
    tokens, rank = sizes.tokens[0], sizes.ranks[-1]
    point = gpu_at(sizes, tokens, rank, experts)
    cases = [(PLAIN, gpu_at(sizes, tokens)), (OURS, point), ("prw triton", point)]
    name = f"{title}-t{tokens}-r{rank}-n{experts}-{passes}"
    return Group("peers", name, passes, (*cases, *((peer, point) for peer in peers)), rounds=sizes.rounds)


def gpu_memory(sizes: GpuSizes) -> Iterator[tuple[str, Point]]:
    """List whose memory is counted: LoRA once, pools at every size, routed peers beyond one expert."""
    one = gpu_at(sizes, sizes.tokens[0], sizes.ranks[-1], 1)
    yield from ((PLAIN, one.but(rank=0, experts=0)), (LORA, one), (LORA_32, one))
    for experts in (1, *sizes.pools[2:4]):
        names = (OURS, "prw triton", *(ROUTED_PEERS if experts > 1 else ()))
        yield from ((name, one.but(experts=experts)) for name in names)

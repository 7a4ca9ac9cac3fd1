"""What is timed, on a CPU and on a GPU: every group of cases that are measured in turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from benchmarks.schema import Granularity, Kind, Pass, Point, Routing, SetName

PASSES: tuple[Pass, ...] = ("forward", "training")
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
ROUTINGS: tuple[Routing, ...] = ("uniform", "90/10", "all to one", "half empty", "blobs")


@dataclass(frozen=True)
class Group:
    """Cases that are measured together: one result."""

    kind: Kind
    name: str
    passes: Pass = "forward"
    cases: tuple[tuple[str, Point], ...] = ()  # the first is what the others are compared with
    budget_s: float = 0  # for the rounds, if their number is not given
    rounds: int = 0
    size: tuple[int, ...] = ()  # heads, features of a head, patches along an edge, text tokens, rank, steps


def at(tokens: int, width: int, rank: int = 0, experts: int = 0, **more: str) -> Point:
    """Write a point briefly."""
    return Point(tokens=tokens, width=width, rank=rank, experts=experts, **more)  # type: ignore[arg-type]


# On a CPU: three sets of one grid.

Sizes = tuple[tuple[int, int, tuple[int, ...], tuple[int, ...]], ...]  # tokens, width; ranks, pool sizes


@dataclass(frozen=True)
class Extent:
    """How much of the grid a set covers."""

    grid: Sizes
    kernels: Sizes  # kernels by name
    peers: tuple[Point, ...]  # every peer
    skew: tuple[Point, ...]  # uneven routing
    memory: tuple[tuple[int, int, tuple[int, ...]], ...]  # tokens, width and ranks
    flux: tuple[tuple[int, ...], ...]  # size of each model whose steps are timed
    generation: tuple[int, ...]  # size of the model that generates whole pictures
    budget_s: tuple[float, float, float] = (0, 0, 0)  # for projections, FLUX, generation


DENSE_UP_TO = 1024
"""Largest rank times experts at which dense is measured by name on a CPU: it computes every expert."""
RANKS, POOLS = (16, 64, 128), (1, 2, 5, 8, 64)
EXTENTS: dict[SetName, Extent] = {
    "smoke": Extent(
        grid=((32, 64, (4,), (1, 3)),),
        kernels=((32, 64, (4,), (3,)),),
        peers=(at(32, 64, 4, 3),),
        skew=(at(32, 64, 4, 3),),
        memory=((32, 64, (4,)),),
        flux=((2, 32, 4, 5, 4),),
        generation=(2, 32, 3, 5, 4, 2),
    ),
    "default": Extent(
        grid=(
            (256, 512, (16, 64), (1, 8, 64)),
            (1024, 1024, (16, 128), (1, 2, 5, 8, 64)),
            (1024, 3072, (16, 128), (1, 8)),
            (4096, 1024, (16,), (1, 8, 64)),
        ),
        kernels=((1024, 1024, (16, 128), (1, 8)),),
        peers=(at(1024, 1024, 16, 8),),
        skew=(at(1024, 1024, 64, 8),),
        memory=((1024, 1024, (16, 128)),),
        flux=((8, 128, 32, 512, 16),),
        generation=(4, 128, 16, 32, 24, 28),
        budget_s=(12, 20, 60),
    ),
    "full": Extent(
        grid=tuple((t, d, RANKS, POOLS) for d, t in product((512, 1024, 3072), (256, 1024, 4096))),
        kernels=tuple(
            (t, d, RANKS, POOLS) for t, d in ((256, 512), (1024, 1024), (4096, 1024), (1024, 3072))
        ),
        peers=(
            *(at(1024, 1024, rank, 8) for rank in RANKS),
            *(at(4096, 1024, 16, 8), at(1024, 3072, 16, 8), at(1024, 512, 128, 8)),
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
    extent = EXTENTS[chosen]
    found = [group for passes in PASSES for group in projection_groups(extent, passes, chosen != "smoke")]
    found.append(Group("memory", "memory", cases=tuple(memory_cases(extent)), rounds=1))
    for size in extent.flux:
        for passes, what in zip(PASSES, ("denoising", "training"), strict=True):
            name = f"flux-d{size[0] * size[1]}-r{size[4]}-{what}"
            found.append(Group("flux", name, passes, flux_pools(size), extent.budget_s[1], size=size))
    heads, head, side, *_ = extent.generation
    name = f"generation-d{heads * head}-t{side**2}"
    found.append(Group("generation", name, budget_s=extent.budget_s[2], size=extent.generation))
    return [*found, Group("input", "input", rounds=5)]


def flux_pools(size: tuple[int, ...], **more: str) -> tuple[tuple[str, Point], ...]:
    """List the pools of a FLUX; the plain model and LoRA come with them."""
    heads, head, side, _, rank = size
    return tuple((OURS, at(side**2, heads * head, rank, n, **more)) for n in (1, 5, 8))


def projection_groups(extent: Extent, passes: Pass, compiles: bool) -> Iterator[Group]:
    """Everything about the projections of a site: the grid, peers, kernels by name, uneven routing."""

    def group(kind: Kind, size: str, cases: Iterable[tuple[str, Point]]) -> Group:
        return Group(kind, f"{kind}-{size}-{passes}", passes, tuple(cases), extent.budget_s[0])

    for t, d, ranks, pools in extent.grid:
        cases = [(PLAIN, at(t, d)), *((LORA, at(t, d, rank, 1)) for rank in ranks)]
        for rank, n, granularity in product(ranks, pools, ("token", "sample")):
            cases.append((OURS, at(t, d, rank, n, granularity=granularity)))
        yield group("grid", f"t{t}-d{d}", cases)
    for point in extent.peers:
        t, d, one = point.tokens, point.width, point.but(experts=1)
        cases = [(PLAIN, at(t, d)), (LORA, one), (OURS, one), (OURS, point)]
        cases += [(name, point) for name in (*ROUTED_PEERS, *([COMPILED] if compiles else []))]
        yield group("peers", f"t{t}-d{d}-r{point.rank}", cases)
    for t, d, ranks, pools in extent.kernels:
        cases = [(PLAIN, at(t, d))]
        for rank, n in product(ranks, pools):
            names = [one for one in CPU_KERNELS if one != "dense" or rank * n <= DENSE_UP_TO]
            cases += [(name, at(t, d, rank, n)) for name in (*(f"prw {one}" for one in names), OURS)]
        yield group("kernels", f"t{t}-d{d}", cases)
    for point in extent.skew:
        t, d = point.tokens, point.width
        cases = [(PLAIN, at(t, d)), (LORA, point.but(experts=1))]
        cases += [(OURS, point.but(routing=routing)) for routing in ROUTINGS[:3]]
        yield group("skew", f"t{t}-d{d}-r{point.rank}", cases)


def memory_cases(extent: Extent) -> Iterator[tuple[str, Point]]:
    """List what is counted: each pool size by token, peers at N = 4 and N = 8."""
    for t, d, ranks in extent.memory:
        yield PLAIN, at(t, d)
        for rank in ranks:
            yield LORA, at(t, d, rank, 1)
            yield from ((OURS, at(t, d, rank, experts)) for experts in (1, 4, 8))
            yield OURS, at(t, d, rank, 8, granularity="sample")
            yield from ((name, at(t, d, rank, n)) for name in ROUTED_PEERS for n in (4, 8))


# On a GPU: one list, most important first; the budget ends it wherever it is spent.


@dataclass(frozen=True)
class GpuSizes:
    """How large everything is on a GPU."""

    width: int = 3072
    tokens: tuple[int, int, int] = (4096, 1024, 32768)  # of the main points, the small ones, a large one
    ranks: tuple[int, int, int] = (16, 64, 128)  # the last one is where peers are compared
    pools: tuple[int, ...] = (1, 2, 4, 8, 64)
    rounds: int = 30
    some: tuple[int, int] = (64, 8)  # rank and experts of uneven routing and of checks in 16 bits
    flux: tuple[int, int, int, int] = (24, 128, 64, 512)

    def at(self, tokens: int, rank: int = 0, experts: int = 0, **more: str) -> Point:
        """Write a point briefly."""
        return at(tokens, self.width, rank, experts, dtype="bfloat16", **more)


GPU_SIZES: dict[SetName, GpuSizes] = {
    "full": GpuSizes(),
    "rehearsal": GpuSizes(64, (32, 64, 96), (8, 16, 24), (1, 2, 3), 1, (8, 4), (2, 32, 4, 5)),
}


def check_points(chosen: SetName) -> tuple[Point, Point]:
    """Give the odd sizes at which float32 is checked, and those at which 16 bits are."""
    sizes = GPU_SIZES[chosen]
    return at(4 * 83, min(sizes.width, 192), 12, 5), sizes.at(sizes.tokens[1], *sizes.some)


def gpu_groups(chosen: SetName) -> list[Group]:
    """List the groups of a GPU's set, most important first; a rehearsal has one of each kind and pass."""
    found = list(all_gpu_groups(GPU_SIZES[chosen]))
    if chosen == "full":
        return found
    kinds = {
        (one.kind, one.passes, *{case for case, _ in one.cases}, "-sample-" in one.name): one
        for one in reversed(found)
        if all(case != COMPILED for case, _ in one.cases)
    }
    return [one for one in found if one in kinds.values()]


def all_gpu_groups(sizes: GpuSizes) -> Iterator[Group]:
    """Give correctness and ceilings first, then the main points and the nearest peer, then the rest."""
    main, small, large = sizes.tokens
    few, middle, high = sizes.ranks
    rounds, pools, peers = sizes.rounds, sizes.pools[:4], sizes.pools[2:4]
    for kernel in GPU_KERNELS:
        yield Group("checks", f"checks-{kernel}", cases=((kernel, sizes.at(small, *sizes.some)),), rounds=1)
    points = tuple((PLAIN, sizes.at(tokens)) for tokens in sizes.tokens)
    yield Group("ceilings", "ceilings", cases=points, rounds=rounds)
    yield by_kernels(sizes, main, high, "forward")
    yield by_kernels(sizes, main, few, "forward")
    yield beside_peers(sizes, 1, "forward", (LORA, LORA_32))
    yield by_kernels(sizes, main, high, "training")
    yield beside_peers(sizes, 1, "training", (LORA, LORA_32))
    for experts, passes in product(peers, PASSES):
        yield beside_peers(sizes, experts, passes, ROUTED_PEERS)
    yield by_kernels(sizes, main, middle, "forward")
    for rank in (high, few):
        yield by_kernels(sizes, small, rank, "forward", pools)
    yield Group("memory", "memory", "training", tuple(gpu_memory(sizes)), rounds=1)
    yield by_kernels(sizes, main, few, "training")
    yield by_kernels(sizes, main, middle, "training")
    for passes in PASSES:
        skewed = [sizes.at(main, *sizes.some, routing=routing) for routing in ROUTINGS]
        yield gpu_group(sizes, "skew", f"skew-t{main}-r{sizes.some[0]}-{passes}", passes, skewed)
    for passes in PASSES:
        yield by_kernels(sizes, main, high, passes, pools, "sample")
    for rank, passes in product((few, high), PASSES):
        name, size = f"flux-r{rank}-{passes}", (*sizes.flux, rank)
        pools_there = flux_pools(size, dtype="bfloat16")
        yield Group("flux", name, passes, pools_there, rounds=max(rounds // 2, 1), size=size)
    yield by_kernels(sizes, large, high, "forward", sizes.pools[:1])
    yield by_kernels(sizes, small, high, "training", pools)
    yield by_kernels(sizes, small, middle, "forward", pools)
    yield beside_peers(sizes, peers[0], "forward", (COMPILED,), "compiled")


def by_kernels(
    sizes: GpuSizes, tokens: int, rank: int, passes: Pass, pools: tuple[int, ...] = (),
    granularity: Granularity = "token",
) -> Group:  # fmt: skip
    """The pool by every kernel, at every size of the pool."""
    points = [sizes.at(tokens, rank, n, granularity=granularity) for n in pools or sizes.pools]
    ending = "" if granularity == "token" else "-sample"
    return gpu_group(sizes, "kernels", f"kernels-t{tokens}-r{rank}{ending}-{passes}", passes, points)


def gpu_group(sizes: GpuSizes, kind: Kind, name: str, passes: Pass, points: list[Point]) -> Group:
    """Every kernel at some points, beside two plain projections and a stacked one."""
    plain, kernels = sizes.at(points[0].tokens), (OURS, *(f"prw {kernel}" for kernel in GPU_KERNELS))
    cases = ((PLAIN, plain), (STACKED, plain), *((one, point) for point in points for one in kernels))
    return Group(kind, name, passes, cases, rounds=sizes.rounds)


def beside_peers(
    sizes: GpuSizes, experts: int, passes: Pass, peers: tuple[str, ...], title: str = "peers"
) -> Group:
    """The pool as it comes, and with triton, beside peers."""
    tokens, rank = sizes.tokens[0], sizes.ranks[-1]
    cases = [(name, sizes.at(tokens, rank, experts)) for name in (OURS, "prw triton", *peers)]
    name = f"{title}-t{tokens}-r{rank}-n{experts}-{passes}"
    return Group("peers", name, passes, ((PLAIN, sizes.at(tokens)), *cases), rounds=sizes.rounds)


def gpu_memory(sizes: GpuSizes) -> Iterator[tuple[str, Point]]:
    """List whose memory is counted: LoRA once, pools at every size, routed peers beyond one expert."""
    tokens, rank = sizes.tokens[0], sizes.ranks[-1]
    yield PLAIN, sizes.at(tokens)
    yield from ((name, sizes.at(tokens, rank, 1)) for name in (LORA, LORA_32))
    for n in (1, *sizes.pools[2:4]):
        names = (OURS, "prw triton", *(ROUTED_PEERS if n > 1 else ()))
        yield from ((name, sizes.at(tokens, rank, n)) for name in names)

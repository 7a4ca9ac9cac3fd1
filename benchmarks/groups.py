"""The groups of a set: which cases are measured together, in one process, round by round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from benchmarks.peers import KERNELS
from benchmarks.points import Granularity, Point
from benchmarks.schema import Kind, Pass

SetName = Literal["smoke", "default", "full"]
PASSES: tuple[Pass, ...] = ("forward", "training")
GRANULARITIES: tuple[Granularity, ...] = ("token", "sample")
PLAIN = "two nn.Linear"
LORA = "PEFT LoRA"
ROUTED_PEERS = ("PEFT X-LoRA layer", "PEFT Arrow", "MixLoRA-style loop", "transformers grouped_mm")
COMPILED = "torch.compile of reference"


@dataclass(frozen=True)
class Group:
    """Cases that are measured together.

    Attributes:
        kind: Which question it answers.
        name: Of its result's file.
        passes: Forward, or forward and backward.
        cases: Competitor and point; the plain projections come first.
        budget_s: Seconds that its rounds may take, as far as the least number of rounds allows.
    """

    kind: Kind
    name: str
    passes: Pass
    cases: tuple[tuple[str, Point], ...]
    budget_s: float


@dataclass(frozen=True)
class Extent:
    """How much of the grid a set covers.

    Attributes:
        grid: Tokens and width, with the ranks and pool sizes measured there.
        peers: Points of the comparison with every peer, all at N = 8.
        kernels: As `grid`, for forced kernels.
        skew: Where skewed routing is measured.
        budget_s: Seconds for each group's rounds.
        compiles: Whether torch.compile takes part; compiling takes half a minute.
    """

    grid: tuple[tuple[int, int, tuple[int, ...], tuple[int, ...]], ...]
    peers: tuple[Point, ...]
    kernels: tuple[tuple[int, int, tuple[int, ...], tuple[int, ...]], ...]
    skew: tuple[Point, ...]
    budget_s: float
    compiles: bool = True


DENSE_UP_TO = 1024
"""Largest rank times experts at which the dense kernel is measured by name."""
RANKS, POOLS = (16, 64, 128), (1, 2, 5, 8, 64)
EXTENTS: dict[SetName, Extent] = {
    "smoke": Extent(
        grid=((32, 64, (4,), (1, 3)),),
        peers=(Point(32, 64, 4, 3),),
        kernels=((32, 64, (4,), (3,)),),
        skew=(Point(32, 64, 4, 3),),
        budget_s=0,
        compiles=False,
    ),
    "default": Extent(
        grid=(
            (256, 512, (16, 64), (1, 8, 64)),
            (1024, 1024, (16, 128), (1, 2, 5, 8, 64)),
            (1024, 3072, (16, 128), (1, 8)),
            (4096, 1024, (16,), (1, 8, 64)),
        ),
        peers=(Point(1024, 1024, 16, 8),),
        kernels=((1024, 1024, (16, 128), (1, 8)),),
        skew=(Point(1024, 1024, 64, 8),),
        budget_s=12,
    ),
    "full": Extent(
        grid=tuple((t, d, RANKS, POOLS) for d, t in product((512, 1024, 3072), (256, 1024, 4096))),
        peers=(
            *(Point(1024, 1024, rank, 8) for rank in RANKS),
            Point(4096, 1024, 16, 8),
            Point(1024, 3072, 16, 8),
            Point(1024, 512, 128, 8),
        ),
        kernels=tuple(
            (t, d, RANKS, POOLS) for t, d in ((256, 512), (1024, 1024), (4096, 1024), (1024, 3072))
        ),
        skew=(Point(1024, 1024, 64, 8), Point(4096, 1024, 64, 8)),
        budget_s=25,
    ),
}
MEMORY: dict[SetName, tuple[tuple[int, int, tuple[int, ...]], ...]] = {
    "smoke": ((32, 64, (4,)),),
    "default": ((1024, 1024, (16, 128)),),
    "full": ((1024, 1024, RANKS), (4096, 1024, RANKS), (4096, 3072, (16, 128))),
}
"""Tokens, width and ranks where activation memory is counted."""


def size(tokens: int, width: int) -> str:
    return f"t{tokens}-d{width}"


def grid_groups(extent: Extent, passes: Pass) -> Iterator[Group]:
    """One group per tokens and width: every rank, pool size and granularity beside the plain projections."""
    for tokens, width, ranks, pools in extent.grid:
        cases = [(PLAIN, Point(tokens, width, ranks[0]))]
        cases += [(LORA, Point(tokens, width, rank)) for rank in ranks]
        for rank, experts, granularity in product(ranks, pools, GRANULARITIES):
            cases.append(("prw", Point(tokens, width, rank, experts, granularity)))
        yield Group("grid", f"grid-{size(tokens, width)}-{passes}", passes, tuple(cases), extent.budget_s)


def peer_groups(extent: Extent, passes: Pass) -> Iterator[Group]:
    """One group per point: prw beside every peer."""
    for point in extent.peers:
        one = replace(point, experts=1)
        cases = [(PLAIN, one), (LORA, one), ("prw", one), ("prw", point)]
        cases += [(name, point) for name in ROUTED_PEERS]
        if extent.compiles:
            cases.append((COMPILED, point))
        name = f"peers-{size(point.tokens, point.width)}-r{point.rank}-{passes}"
        yield Group("peers", name, passes, tuple(cases), extent.budget_s)


def kernel_groups(extent: Extent, passes: Pass) -> Iterator[Group]:
    """One group per tokens and width: every kernel by name, for the table of thresholds."""
    for tokens, width, ranks, pools in extent.kernels:
        cases = [(PLAIN, Point(tokens, width, ranks[0]))]
        for rank, experts in product(ranks, pools):
            point = Point(tokens, width, rank, experts)
            # Dense computes every expert: far past the threshold it would only take time. Triton needs a GPU.
            left_out = {"triton"} if rank * experts <= DENSE_UP_TO else {"triton", "dense"}
            cases += [(f"prw {kernel}", point) for kernel in KERNELS if kernel not in left_out]
            cases.append(("prw", point))
        yield Group(
            "kernels", f"kernels-{size(tokens, width)}-{passes}", passes, tuple(cases), extent.budget_s
        )


def skew_groups(extent: Extent, passes: Pass) -> Iterator[Group]:
    """One group per point: the same pool under even and skewed routing."""
    for point in extent.skew:
        cases = [(PLAIN, point), (LORA, replace(point, experts=1))]
        cases += [("prw", replace(point, skew=skew)) for skew in ("uniform", "90/10", "all to one")]
        name = f"skew-{size(point.tokens, point.width)}-r{point.rank}-{passes}"
        yield Group("skew", name, passes, tuple(cases), extent.budget_s)


KINDS = {"grid": grid_groups, "peers": peer_groups, "kernels": kernel_groups, "skew": skew_groups}


def groups(kind: Kind, chosen: SetName) -> list[Group]:
    """List the groups of a kind in a set."""
    return [group for passes in PASSES for group in KINDS[kind](EXTENTS[chosen], passes)]

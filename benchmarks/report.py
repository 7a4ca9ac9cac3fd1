"""Questions to the results, and each target beside what was measured: computed, never typed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from benchmarks.cases import CACHED, LORA, LORA_32, OURS
from benchmarks.schema import Kind, Launch, Memory, Pass, Picture, Result, Row, Step
from benchmarks.store import CPU, read_all

BIG = 1024  # from how many tokens on the targets hold
PASSES: tuple[tuple[Pass, str], ...] = (("forward", "forward"), ("training", "forward and backward"))
Key = tuple[int, int, int]  # tokens, width, rank


@dataclass(frozen=True)
class Ratio:
    """A ratio and the point that it is of; `reach` is what it would be if prw stood at its floor."""

    value: float
    at: str
    reach: float | None = None


@dataclass(frozen=True)
class Found:
    """Every result of a folder, smaller sizes first."""

    results: tuple[Result, ...]

    def of(self, kind: Kind) -> list[Result]:
        return [result for result in self.results if result.kind == kind]

    def rows(self, kind: Kind, passes: Pass) -> Iterator[Row]:
        return (row for result in self.of(kind) if result.passes == passes for row in result.times)

    def pools(self, passes: Pass) -> list[Row]:
        """Give prw's cases of the grid."""
        return [row for row in self.rows("grid", passes) if row.case == OURS]

    def row(self, kind: Kind, passes: Pass, case: str, key: Key, *pool: int | str) -> Row | None:
        """Find a case under even routing, by experts and granularity (token); None if it was not measured."""
        pool = pool if len(pool) == 2 else (*pool, "token")
        for row in self.rows(kind, passes):
            at = row.point
            wanted = (row.case, key_of(row), (at.experts, at.granularity), at.routing)
            if wanted == (case, key, pool, "uniform"):
                return row
        return None

    def ratio(self, kind: Kind, passes: Pass, case: str, key: Key, *pool: int | str) -> float | None:
        """Give the ratio of such a case to the plain projections."""
        row = self.row(kind, passes, case, key, *pool)
        return None if row is None else row.ratio

    def keys(self, kind: Kind, passes: Pass) -> list[Key]:
        """List tokens, width and rank of what was measured."""
        found = {key_of(row) for row in self.rows(kind, passes)}
        return sorted((key for key in found if key[2]), key=lambda key: (key[1], key[0], key[2]))

    def memory(self) -> list[Memory]:
        return [row for result in self.of("memory") for row in result.memory]

    def steps(self) -> list[tuple[Result, Step]]:
        return [(result, step) for result in self.of("flux") for step in result.steps]

    def pictures(self) -> list[tuple[Result, Picture]]:
        return [(result, row) for result in self.of("generation") for row in result.pictures]


def key_of(row: Row | Memory) -> Key:
    return row.point.tokens, row.point.width, row.point.rank


def load() -> Found:
    """Read the committed results of the CPU; those of the input pipeline have a page of their own."""

    def order(result: Result) -> tuple[object, ...]:
        first = result.times[0].point if result.times else None
        setup = result.setup
        size = (first.width, first.tokens) if first else (setup.get("width", 0), setup.get("rank", 0))
        return (*size, result.name)

    return Found(tuple(sorted((one for one in read_all(CPU) if one.kind != "input"), key=order)))


def over_floor(found: Found, passes: Pass) -> list[Ratio]:
    """Time over floor at the grid's points that count."""
    rows = [row for row in found.pools(passes) if row.point.tokens >= BIG]
    return [Ratio(row.ratio / row.floor, row.point.label()) for row in rows if row.floor is not None]


def growth(found: Found, passes: Pass) -> list[Ratio]:
    """Time with 64 experts over time with one, at rank 16."""
    rows = [row for row in found.pools(passes) if (row.point.rank, row.point.experts) == (16, 64)]
    return beside(found, passes, rows, OURS)


def beside_lora(found: Found, passes: Pass, experts: int) -> list[Ratio]:
    """Time of a token-routed pool over that of one PEFT LoRA of its rank."""
    wanted = ("token", experts)
    rows = [row for row in found.pools(passes) if (row.point.granularity, row.point.experts) == wanted]
    return beside(found, passes, rows, LORA)


def beside(found: Found, passes: Pass, rows: list[Row], case: str) -> list[Ratio]:
    """Give the times of the grid's rows that count over those of a case with one expert."""
    ratios = []
    for row in (row for row in rows if row.point.tokens >= BIG):
        base = found.ratio("grid", passes, case, key_of(row), 1, row.point.granularity)
        ratios += [] if base is None else [Ratio(row.ratio / base, row.point.label())]
    return ratios


def faster_than(found: Found, passes: Pass, peer: str) -> list[Ratio]:
    """Time of a peer over that of a token-routed pool of as many experts."""
    ratios = []
    for row in found.rows("peers", passes):
        ours = found.row("peers", passes, OURS, key_of(row), row.point.experts)
        if row.case == peer and row.point.tokens >= BIG and ours is not None and ours.floor is not None:
            ratios.append(Ratio(row.ratio / ours.ratio, row.point.label(), row.ratio / ours.floor))
    return ratios


def memory_beside(
    found: Found, peer: str, experts: tuple[int, ...], peer_experts: int | None, what: str
) -> list[Ratio]:
    """Activation memory of token-routed pools over a peer's; the peer's pool is as large where None."""
    kept = {(row.case, row.point): getattr(row, what) for row in found.memory()}
    ratios = []
    for (case, at), ours in kept.items():
        theirs = kept.get((peer, at.but(experts=peer_experts or at.experts)))
        if case == OURS and at.experts in experts and at.granularity == "token" and theirs is not None:
            ratios.append(Ratio(ours / theirs, at.label()))
    return ratios


def cached(found: Found, what: str) -> list[Ratio]:
    """Give a ratio of every picture with the source cached."""
    rows = [(result, row) for result, row in found.pictures() if row.case.startswith(CACHED)]
    return [Ratio(getattr(row, what), scene(result, row)) for result, row in rows]


def five_beside_one(found: Found, what: Callable[[Picture], float]) -> list[Ratio]:
    """Give what a pool of five takes over what a pool of one takes, both with the source cached."""
    ratios = []
    for result in found.of("generation"):
        rows = {row.experts: row for row in result.pictures if row.case.startswith(CACHED)}
        if {1, 5} <= rows.keys():
            ratios.append(Ratio(what(rows[5]) / what(rows[1]), scene(result, rows[5])))
    return ratios


def scene(result: Result, row: Picture) -> str:
    return f"d={result.setup['width']}, {row.text} text and {row.noise} noise tokens, N={row.experts}"


def geometric_mean(ratios: list[Ratio]) -> float:
    return statistics.geometric_mean([ratio.value for ratio in ratios])


@dataclass(frozen=True)
class Verdict:
    """A target, what was measured, and whether that meets it; None if nothing was measured."""

    target: str
    measured: str
    met: bool | None
    wanted: str = ""

    @property
    def word(self) -> str:
        """Say it in a word."""
        return "not measured" if self.met is None else "met" if self.met else "**NOT met**"


def at_most(target: str, ratios: list[Ratio], limit: float, sign: int = 1) -> Verdict:
    """Judge that every point stays at or below a limit: the worst point, the mean, how many stay."""
    if not ratios:
        return Verdict(target, "no such point", None)
    worst, held = (
        max(ratios, key=lambda one: sign * one.value),
        [sign * (r.value - limit) <= 0 for r in ratios],
    )
    reach = "" if worst.reach is None else f", {worst.reach:.2f} with prw at its floor"
    points = f"mean {geometric_mean(ratios):.2f}; holds at {sum(held)} of {len(held)} points"
    return Verdict(target, f"worst {worst.value:.2f} ({worst.at}{reach}); {points}", all(held))


def at_least(target: str, ratios: list[Ratio], limit: float) -> Verdict:
    """Judge that every point reaches a limit."""
    return at_most(target, ratios, limit, -1)


def mean_at_most(target: str, ratios: list[Ratio], limit: float) -> Verdict:
    """Judge a geometric mean."""
    if not ratios:
        return Verdict(target, "no such point", None)
    mean = geometric_mean(ratios)
    return Verdict(target, f"{mean:.3f} over {len(ratios)} points", mean <= limit)


def verdicts(found: Found) -> list[Verdict]:
    """Judge every target: the floor, the pool's size, peers, memory, whole models."""
    judged = []
    for (passes, words), limit in zip(PASSES, (1.20, 1.25), strict=True):
        ratios, target = over_floor(found, passes), f"{words}: time over its floor"
        judged.append(mean_at_most(f"{target}, geometric mean ≤ {limit:.2f}", ratios, limit))
        judged.append(at_most(f"{target}, no point over 1.5", ratios, 1.5))
    for passes, words in PASSES:
        target = f"{words}: N = 64 at r = 16 costs ≤ 1.25 times N = 1"
        judged.append(at_most(target, growth(found, passes), 1.25))
    for passes, words in PASSES:
        one, eight = (beside_lora(found, passes, n) for n in (1, 8))
        judged.append(at_most(f"{words}: N = 8 by token ≤ 1.25 times one PEFT LoRA of its rank", eight, 1.25))
        judged.append(at_most(f"{words}: N = 1 no slower than PEFT LoRA", one, 1.0))
    for passes, words in PASSES:
        for peer, limit in (("PEFT Arrow", 3.0), ("PEFT X-LoRA layer", 5.0), ("MixLoRA-style loop", 1.3)):
            target = f"{words}: at N = 8 ≥ {limit:g} times faster than {peer}"
            judged.append(at_least(target, faster_than(found, passes, peer), limit))
    for what, words in (("saved_mib", "kept for backward"), ("peak_mib", "at its peak")):
        lora = memory_beside(found, LORA, (1, 4, 8), 1, what)
        arrow = memory_beside(found, "PEFT Arrow", (4,), None, what)
        judged.append(at_most(f"activation memory {words} ≤ PEFT LoRA's, N = 1, 4, 8", lora, 1.0))
        judged.append(at_most(f"activation memory {words} ≤ a third of Arrow's, N = 4", arrow, 1 / 3))
    return judged + model_verdicts(found)


def model_verdicts(found: Found) -> list[Verdict]:
    """Judge the training step of a whole model, and what a source and a pool cost when generating."""
    steps = [
        Ratio(step.ratio_to_lora, f"d={result.setup['width']} r={result.setup['rank']} N={step.experts}")
        for result, step in found.steps()
        if step.what == "training step" and step.case.startswith(OURS)
    ]
    text, kontext = cached(found, "ratio"), cached(found, "kontext_ratio")
    time = five_beside_one(found, lambda row: row.median_ms)
    memory = five_beside_one(found, lambda row: row.weights_mib + row.peak_mib)
    generating = "generating with the source cached"
    return [
        at_most("FLUX training step ≤ 1.05 times the step with PEFT LoRA, N = 1, 5, 8", steps, 1.05),
        at_most(f"{generating} ≤ 1.20 times text alone", text, 1.20),
        at_least(f"{generating} ≥ 1.5 times faster than FluxKontextPipeline", kontext, 1.5),
        at_most("generating with N = 5 ≤ 1.05 times the time of N = 1", time, 1.05),
        at_most("generating with N = 5 ≤ 1.05 times the memory of N = 1", memory, 1.05),
    ]


# Targets for one H100, each with what a GPU's results say: bfloat16, cold cache, recorded, even routing.

Judge = Callable[[Sequence[Result]], list[Ratio]]
GPU_TOKENS, GPU_RANK, TO_EIGHT = 4096, 128, (1, 2, 4, 8)


def gpu_row(
    results: Sequence[Result], case: str, tokens: int, rank: int, experts: int, passes: Pass, launch: Launch
) -> Row | None:
    """Find a row of even token routing with a cold cache."""
    for row in (row for result in results if result.passes == passes for row in result.times):
        at = row.point
        point = (at.tokens, at.rank, at.experts, at.granularity, at.routing)
        how = (row.case, row.launch, row.cache)
        if point == (tokens, rank, experts, "token", "uniform") and how == (case, launch, "cold"):
            return row
    return None


def beside_plain(
    results: Sequence[Result],
    rank: int,
    pools: tuple[int, ...],
    passes: Pass = "forward",
    tokens: int = GPU_TOKENS,
) -> list[Ratio]:
    """Ratio of a pool to two plain projections, by the kernel that it takes by itself."""
    rows = ((n, gpu_row(results, OURS, tokens, rank, n, passes, "graph")) for n in pools)
    return [Ratio(row.ratio, f"N={n}") for n, row in rows if row is not None]


def beside_peer(results: Sequence[Result], peer: str, pools: tuple[int, ...]) -> list[Ratio]:
    """Time of a peer over that of a pool: recorded if both can be, else both eager."""
    found: dict[int, Ratio] = {}
    launches: tuple[Launch, ...] = ("graph", "eager")
    for n, launch in product(pools, launches):
        case = (GPU_TOKENS, GPU_RANK, n, "forward", launch)
        ours, theirs = gpu_row(results, OURS, *case), gpu_row(results, peer, *case)
        if ours is not None and theirs is not None:
            found.setdefault(n, Ratio(theirs.median_ms / ours.median_ms, f"N={n}, {launch}"))
    return list(found.values())


def gpu_memory_beside(results: Sequence[Result], peer: str, experts: int) -> list[Ratio]:
    """What autograd keeps for the backward, over what it keeps for a peer."""
    rows = [row for result in results for row in result.memory]
    kept = {(row.case, row.point.experts): row.saved_mib for row in rows}
    ours, theirs = kept.get((OURS, experts)), kept.get((peer, experts))
    return [Ratio(ours / theirs, f"N={experts}")] if ours is not None and theirs else []


def gpu_flux(results: Sequence[Result]) -> list[Ratio]:
    """Denoising steps of the FLUX-proportioned model over the plain model's, rank 128."""
    steps = [
        step for result in results if result.name == f"flux-r{GPU_RANK}-forward" for step in result.steps
    ]
    return [Ratio(step.ratio, step.case) for step in steps if step.case.startswith(OURS)]


@dataclass(frozen=True)
class GpuTarget:
    """A target for one H100; the limit is an upper one, or a lower one for times that a peer is slower."""

    against: str
    must: str
    good: str
    floor: str
    limit: float
    judge: Judge


TRAINING, STACKED = "forward and backward, r = 128, N = 1 to 8", "T = 1024, K and V stacked"
PLAIN_TARGETS: tuple[tuple[str, str, str, str, float, tuple[Any, ...]], ...] = (
    ("forward, r = 16, N ≤ 8", "≤ 1.20", "1.14", "1.013", 1.20, (16, TO_EIGHT)),
    ("forward, r = 64, N ≤ 4", "≤ 1.25", "1.18", "1.043", 1.25, (64, (1, 2, 4))),
    ("forward, r = 128, N = 1", "≤ 1.22", "1.15", "1.084", 1.22, (128, (1,))),
    ("forward, r = 128, N = 2", "≤ 1.27", "1.20", "1.084", 1.27, (128, (2,))),
    ("forward, r = 128, N = 4", "≤ 1.30", "1.23", "1.085", 1.30, (128, (4,))),
    ("forward, r = 128, N = 8", "≤ 1.35", "1.26", "1.086", 1.35, (128, (8,))),
    ("forward, r = 16, N = 64", "≤ 1.35", "1.25", "1.031", 1.35, (16, (64,))),
    (TRAINING, "≤ 1.40", "1.25 to 1.35", "1.09 to 1.13", 1.40, (128, TO_EIGHT, "training")),
    (STACKED, "≤ 1.15", "< 1.05", "none", 1.15, (128, TO_EIGHT, "forward", 1024)),
)
AS_IT_COMES = "PEFT LoRA as it comes: float32 adapters, no autocast, TF32 off"
PEER_TARGETS = (
    ("PEFT LoRA, same rank, bfloat16 adapters", 1.25, "1.4", "1.5", LORA, (1,)),
    (AS_IT_COMES, 2.0, "2.7", "none", LORA_32, (1,)),
    ("MixLoRA-style loop, any N", 1.8, "2.1", "none", "MixLoRA-style loop", (4, 8)),
    ("transformers grouped_mm", 1.4, "1.55", "none", "transformers grouped_mm", (4, 8)),
    ("PEFT Arrow, N = 4", 2.0, "2.5", "none", "PEFT Arrow", (4,)),
    ("PEFT Arrow, N = 8", 3.0, "3.7", "none", "PEFT Arrow", (8,)),
)
MEMORY_TARGETS = (
    ("activation memory of PEFT LoRA with float32 adapters", "≤ a third", 1 / 3, LORA_32, 1),
    ("activation memory of PEFT Arrow, N = 4", "≤ a sixth", 1 / 6, "PEFT Arrow", 4),
)
GPU_TARGETS = (
    *(
        GpuTarget(f"two nn.Linear, {against}", *words, lambda results, of=of: beside_plain(results, *of))
        for against, *words, of in PLAIN_TARGETS
    ),
    *(
        GpuTarget(
            against, f"≥ {limit:g} times faster", good, floor, limit,
            lambda results, of=of: beside_peer(results, *of),
        )
        for against, limit, good, floor, *of in PEER_TARGETS
    ),
    *(
        GpuTarget(
            against, must, "none", "none", limit, lambda results, of=of: gpu_memory_beside(results, *of)
        )
        for against, must, limit, *of in MEMORY_TARGETS
    ),
    GpuTarget("a whole FLUX step", "≤ +1.5 %", "+1 %", "+0.45 % (r = 128)", 1.015, gpu_flux),
)  # fmt: skip


def gpu_verdicts(results: Sequence[Result]) -> Iterator[Verdict]:
    """Judge every target by its worst point."""
    for target in GPU_TARGETS:
        found, faster = target.judge(results), target.must.startswith("≥")
        if not found:
            yield Verdict(target.against, "not measured", None, target.must)
            continue
        worst = (min if faster else max)(found, key=lambda one: one.value)
        met = worst.value >= target.limit if faster else worst.value <= target.limit
        yield Verdict(target.against, f"{worst.value:.3f} ({worst.at})", met, target.must)


def crossing(dense: Sequence[tuple[int, float]], other: Sequence[tuple[int, float]]) -> float | None:
    """Give experts x rank from which a kernel overtakes the dense one, if it does, from sizes and times."""
    gaps = [(size, math.log(one / two)) for (size, one), (_, two) in zip(dense, other, strict=True)]
    if gaps[0][1] >= 0:
        return float(gaps[0][0])
    for (low, before), (high, after) in pairwise(gaps):
        if before < 0 <= after:
            part = before / (before - after)
            return math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
    return None


def crossings(results: Sequence[Result]) -> dict[str, list[float]]:
    """Find from which experts x rank on a sorted kernel is faster than the dense one, at each rank."""
    series: dict[tuple[str, int], list[tuple[int, float]]] = {}
    known = [one for one in results if (one.kind, one.passes) == ("kernels", "forward")]
    for row in (row for one in known for row in one.times):
        at, how = row.point, (row.launch, row.cache, row.point.granularity)
        if how == ("graph", "cold", "token") and at.tokens == GPU_TOKENS and at.rank:
            series.setdefault((row.case, at.rank), []).append((at.experts * at.rank, row.median_ms))
    found: dict[str, list[float]] = {}
    for (case, rank), times in series.items():
        dense = series.get(("prw dense", rank), [])
        if case in ("prw triton", "prw grouped") and len(dense) == len(times) > 1:
            size = crossing(sorted(dense), sorted(times))
            found.setdefault(case.removeprefix("prw "), []).extend([] if size is None else [size])
    return {kernel: sizes for kernel, sizes in found.items() if sizes}


def threshold(results: Sequence[Result]) -> str:
    """Say which limit of the dense kernel follows from the crossings; predicted for triton: 256 to 384."""
    limits = {name: round(statistics.geometric_mean(sizes)) for name, sizes in crossings(results).items()}
    if not limits:
        return "nothing measured says from where on a sorted kernel is faster than dense"
    kernel, limit = min(limits.items(), key=lambda pair: pair[1])
    said = ", ".join(f"{name} from {size}" for name, size in limits.items())
    return f"faster than dense: {said}; for this device: dense up to experts x rank = {limit}, then {kernel}"

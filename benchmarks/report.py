"""Questions to the results, and each target beside what was measured: computed, never typed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.cases import CACHED, LORA, LORA_32, OURS
from benchmarks.schema import Kind, Launch, Memory, Pass, Picture, Result, Row, Step
from benchmarks.store import CPU, read_all

BIG = 1024
"""From how many tokens on the targets hold."""
PASSES: tuple[tuple[Pass, str], ...] = (("forward", "forward"), ("training", "forward and backward"))
Key = tuple[int, int, int]
"""Tokens, width, rank."""


@dataclass(frozen=True)
class Ratio:
    """A ratio and the point that it is of."""

    value: float
    at: str
    reach: float | None = None
    """What the ratio would be were prw at its floor; None where that is not asked."""


@dataclass(frozen=True)
class Found:
    """Every result of a folder."""

    results: tuple[Result, ...]

    def of(self, kind: Kind) -> list[Result]:
        """Give the results of a kind, smaller sizes first."""
        return [result for result in self.results if result.kind == kind]

    def rows(self, kind: Kind, passes: Pass) -> Iterator[Row]:
        """Give the timed cases of a kind and pass."""
        for result in self.of(kind):
            if result.passes == passes:
                yield from result.times

    def pools(self, passes: Pass) -> list[Row]:
        """Give prw's cases of the grid."""
        return [row for row in self.rows("grid", passes) if row.case == OURS]

    def row(
        self, kind: Kind, passes: Pass, case: str, key: Key, experts: int, granularity: str = "token"
    ) -> Row | None:
        """Find a case under even routing; None if it was not measured."""
        for row in self.rows(kind, passes):
            at = row.point
            point = (at.tokens, at.width, at.rank), at.experts, at.granularity
            if row.case == case and point == (key, experts, granularity) and at.routing == "uniform":
                return row
        return None

    def ratio(
        self, kind: Kind, passes: Pass, case: str, key: Key, experts: int, granularity: str = "token"
    ) -> float | None:
        """Give the ratio of such a case to the plain projections."""
        row = self.row(kind, passes, case, key, experts, granularity)
        return None if row is None else row.ratio

    def keys(self, kind: Kind, passes: Pass) -> list[Key]:
        """List tokens, width and rank of what was measured."""
        found = {(row.point.tokens, row.point.width, row.point.rank) for row in self.rows(kind, passes)}
        return sorted((key for key in found if key[2]), key=lambda key: (key[1], key[0], key[2]))

    def memory(self) -> list[Memory]:
        """Give the counts of memory."""
        return [row for result in self.of("memory") for row in result.memory]

    def steps(self) -> Iterator[tuple[Result, Step]]:
        """Give the steps of whole models with the result that each is of."""
        return ((result, step) for result in self.of("flux") for step in result.steps)

    def pictures(self) -> Iterator[tuple[Result, Picture]]:
        """Give the ways of generating a picture with the result that each is of."""
        return ((result, row) for result in self.of("generation") for row in result.pictures)


def load() -> Found:
    """Read the committed results of the CPU; those of the input pipeline have a page of their own."""
    results = [result for result in read_all(CPU) if result.kind != "input"]
    return Found(tuple(sorted(results, key=order)))


def order(result: Result) -> tuple[object, ...]:
    """Sort by what was measured: width, tokens, name."""
    first = result.times[0].point if result.times else None
    setup = result.setup
    size = (first.width, first.tokens) if first else (setup.get("width", 0), setup.get("rank", 0))
    return (*size, result.name)


# Questions to the grid, the peers, memory and pictures.


def over_floor(found: Found, passes: Pass) -> list[Ratio]:
    """Time over floor at the grid's points that count."""
    return [
        Ratio(row.ratio / row.floor, row.point.label())
        for row in found.pools(passes)
        if row.floor is not None and row.point.tokens >= BIG
    ]


def growth(found: Found, passes: Pass) -> list[Ratio]:
    """Time with 64 experts over time with one, at rank 16."""
    ratios = []
    for row in found.pools(passes):
        at = row.point
        if (at.rank, at.experts) == (16, 64) and at.tokens >= BIG:
            one = found.ratio("grid", passes, OURS, (at.tokens, at.width, 16), 1, at.granularity)
            if one is not None:
                ratios.append(Ratio(row.ratio / one, at.label()))
    return ratios


def beside_lora(found: Found, passes: Pass, experts: int) -> list[Ratio]:
    """Time of a token-routed pool over that of one PEFT LoRA of its rank."""
    ratios = []
    for row in found.pools(passes):
        at = row.point
        if (at.granularity, at.experts) == ("token", experts) and at.tokens >= BIG:
            lora = found.ratio("grid", passes, LORA, (at.tokens, at.width, at.rank), 1)
            if lora is not None:
                ratios.append(Ratio(row.ratio / lora, at.label()))
    return ratios


def faster_than(found: Found, passes: Pass, peer: str) -> list[Ratio]:
    """Time of a peer over that of a token-routed pool of as many experts."""
    ratios = []
    for row in found.rows("peers", passes):
        at = row.point
        if row.case == peer and at.tokens >= BIG:
            ours = found.row("peers", passes, OURS, (at.tokens, at.width, at.rank), at.experts)
            if ours is not None and ours.floor is not None:
                ratios.append(Ratio(row.ratio / ours.ratio, at.label(), row.ratio / ours.floor))
    return ratios


def memory_beside(
    found: Found, peer: str, experts: tuple[int, ...], peer_experts: int | None, what: str
) -> list[Ratio]:
    """Activation memory of token-routed pools over a peer's; the peer's pool is as large where None."""
    rows, ratios = found.memory(), []
    for row in rows:
        at = row.point
        if row.case != OURS or at.experts not in experts or at.granularity != "token":
            continue
        wanted = at.but(experts=at.experts if peer_experts is None else peer_experts)
        for other in rows:
            if other.case == peer and other.point == wanted:
                ratios.append(Ratio(getattr(row, what) / getattr(other, what), at.label()))
    return ratios


def scene(result: Result, row: Picture) -> str:
    """Name what was generated in words."""
    return f"d={result.setup['width']}, {row.text} text and {row.noise} noise tokens, N={row.experts}"


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


def geometric_mean(ratios: list[Ratio]) -> float:
    """Give the geometric mean of ratios."""
    return statistics.geometric_mean([ratio.value for ratio in ratios])


# Verdicts on a CPU's results.


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


def at_most(target: str, ratios: list[Ratio], limit: float) -> Verdict:
    """Judge that every point stays at or below a limit; give the worst, and how many stay."""
    worst = max(ratios, key=lambda ratio: ratio.value, default=None)
    return judged(target, ratios, worst, [ratio.value <= limit for ratio in ratios])


def at_least(target: str, ratios: list[Ratio], limit: float) -> Verdict:
    """Judge that every point reaches a limit; give the worst, and how many do."""
    worst = min(ratios, key=lambda ratio: ratio.value, default=None)
    return judged(target, ratios, worst, [ratio.value >= limit for ratio in ratios])


def judged(target: str, ratios: list[Ratio], worst: Ratio | None, held: list[bool]) -> Verdict:
    """Give the worst point, the mean, and at how many points the target holds."""
    if worst is None:
        return Verdict(target, "no such point", None)
    mean = f"mean {geometric_mean(ratios):.2f}"
    reach = "" if worst.reach is None else f", {worst.reach:.2f} were prw at its floor"
    words = f"worst {worst.value:.2f} ({worst.at}{reach}); {mean}; holds at {sum(held)} of {len(held)} points"
    return Verdict(target, words, all(held))


def mean_at_most(target: str, ratios: list[Ratio], limit: float) -> Verdict:
    """Judge a geometric mean."""
    if not ratios:
        return Verdict(target, "no such point", None)
    mean = geometric_mean(ratios)
    return Verdict(target, f"{mean:.3f} over {len(ratios)} points", mean <= limit)


def verdicts(found: Found) -> list[Verdict]:
    """Judge every target."""
    judges = (floor_verdicts, peer_verdicts, memory_verdicts, flux_verdicts, generation_verdicts)
    return [verdict for judge in judges for verdict in judge(found)]


def floor_verdicts(found: Found) -> Iterator[Verdict]:
    """Judge closeness to the limit, and that cost does not grow with the pool."""
    for (passes, words), limit in zip(PASSES, (1.20, 1.25), strict=True):
        ratios = over_floor(found, passes)
        target = f"{words}: time over its floor"
        yield mean_at_most(f"{target}, geometric mean ≤ {limit:.2f}", ratios, limit)
        yield at_most(f"{target}, no point over 1.5", ratios, 1.5)
    for passes, words in PASSES:
        yield at_most(f"{words}: N = 64 at r = 16 costs ≤ 1.25 times N = 1", growth(found, passes), 1.25)


def peer_verdicts(found: Found) -> Iterator[Verdict]:
    """Judge beside the peers."""
    for passes, words in PASSES:
        target = f"{words}: N = 8 by token ≤ 1.25 times one PEFT LoRA of its rank"
        yield at_most(target, beside_lora(found, passes, 8), 1.25)
        yield at_most(f"{words}: N = 1 no slower than PEFT LoRA", beside_lora(found, passes, 1), 1.0)
    limits = (("PEFT Arrow", 3.0), ("PEFT X-LoRA layer", 5.0), ("MixLoRA-style loop", 1.3))
    for passes, words in PASSES:
        for peer, limit in limits:
            target = f"{words}: at N = 8 ≥ {limit:g} times faster than {peer}"
            yield at_least(target, faster_than(found, passes, peer), limit)


def memory_verdicts(found: Found) -> Iterator[Verdict]:
    """Judge activation memory, kept for backward and at its peak."""
    for what, words in (("saved_mib", "kept for backward"), ("peak_mib", "at its peak")):
        lora = memory_beside(found, LORA, (1, 4, 8), 1, what)
        arrow = memory_beside(found, "PEFT Arrow", (4,), None, what)
        yield at_most(f"activation memory {words} ≤ PEFT LoRA's, N = 1, 4, 8", lora, 1.0)
        yield at_most(f"activation memory {words} ≤ a third of Arrow's, N = 4", arrow, 1 / 3)


def flux_verdicts(found: Found) -> Iterator[Verdict]:
    """Judge the training step of a whole model."""
    ratios = [
        Ratio(step.ratio_to_lora, f"d={result.setup['width']} r={result.setup['rank']} N={step.experts}")
        for result, step in found.steps()
        if step.what == "training step" and step.case.startswith(OURS)
    ]
    yield at_most("FLUX training step ≤ 1.05 times the step with PEFT LoRA, N = 1, 5, 8", ratios, 1.05)


def generation_verdicts(found: Found) -> Iterator[Verdict]:
    """Judge what a source costs when a picture is generated, and what a pool costs."""
    text, kontext = cached(found, "ratio"), cached(found, "kontext_ratio")
    time = five_beside_one(found, lambda row: row.median_ms)
    memory = five_beside_one(found, lambda row: row.weights_mib + row.peak_mib)
    yield at_most("drawing with the source cached ≤ 1.20 times text alone", text, 1.20)
    yield at_least("drawing with the source cached ≥ 1.5 times faster than FluxKontextPipeline", kontext, 1.5)
    yield at_most("drawing with N = 5 ≤ 1.05 times the time of N = 1", time, 1.05)
    yield at_most("drawing with N = 5 ≤ 1.05 times the memory of N = 1", memory, 1.05)


# Targets for one H100, each with what a GPU's results say: bfloat16, cold cache, recorded, even routing.

GPU_TOKENS, GPU_SMALL, GPU_RANK = 4096, 1024, 128
Judge = Callable[[Sequence[Result]], list[Ratio]]


def gpu_row(
    results: Sequence[Result], case: str, tokens: int, rank: int, experts: int, passes: Pass, launch: Launch
) -> Row | None:
    """Find a row of even token routing with a cold cache."""
    for result in results:
        for row in result.times if result.passes == passes else ():
            at = row.point
            point = (at.tokens, at.rank, at.experts, at.granularity, at.routing)
            how = (row.case, row.launch, row.cache)
            if point == (tokens, rank, experts, "token", "uniform") and how == (case, launch, "cold"):
                return row
    return None


def beside_plain(
    rank: int, pools: tuple[int, ...], passes: Pass = "forward", tokens: int = GPU_TOKENS
) -> Judge:
    """Ratio of a pool to two plain projections, by the kernel that it takes by itself."""

    def judge(results: Sequence[Result]) -> list[Ratio]:
        rows = ((n, gpu_row(results, OURS, tokens, rank, n, passes, "graph")) for n in pools)
        return [Ratio(row.ratio, f"N={n}") for n, row in rows if row is not None]

    return judge


def beside_peer(peer: str, pools: tuple[int, ...]) -> Judge:
    """Time of a peer over that of a pool: recorded if both can be, else both eager."""

    def judge(results: Sequence[Result]) -> list[Ratio]:
        found = []
        launches: tuple[Launch, ...] = ("graph", "eager")
        for n in pools:
            for launch in launches:
                ours, theirs = (
                    gpu_row(results, case, GPU_TOKENS, GPU_RANK, n, "forward", launch)
                    for case in (OURS, peer)
                )
                if ours is not None and theirs is not None:
                    found.append(Ratio(theirs.median_ms / ours.median_ms, f"N={n}, {launch}"))
                    break
        return found

    return judge


def gpu_memory_beside(peer: str, experts: int) -> Judge:
    """What autograd keeps for the backward, over what it keeps for a peer."""

    def judge(results: Sequence[Result]) -> list[Ratio]:
        rows = [row for result in results for row in result.memory]
        kept = {(row.case, row.point.experts): row.saved_mib for row in rows}
        ours, theirs = kept.get((OURS, experts)), kept.get((peer, experts))
        return [Ratio(ours / theirs, f"N={experts}")] if ours is not None and theirs else []

    return judge


def gpu_flux(results: Sequence[Result]) -> list[Ratio]:
    """Denoising steps of the FLUX-proportioned model over the plain model's, rank 128."""
    steps = [
        step for result in results if result.name == f"flux-r{GPU_RANK}-forward" for step in result.steps
    ]
    return [Ratio(step.ratio, step.case) for step in steps if step.case.startswith(OURS)]


@dataclass(frozen=True)
class GpuTarget:
    """A target for one H100: as it must be, as it would be good, as physics allows; and its judge.

    `limit` is an upper one, or a lower one for times that a peer is slower.
    """

    against: str
    must: str
    good: str
    floor: str
    limit: float
    judge: Judge


TO_EIGHT = (1, 2, 4, 8)
AS_IT_COMES = "PEFT LoRA as it comes: float32 adapters, no autocast, TF32 off"
GPU_TARGETS = (
    GpuTarget(
        "two nn.Linear, forward, r = 16, N ≤ 8", "≤ 1.20", "1.14", "1.013", 1.20, beside_plain(16, TO_EIGHT)
    ),
    GpuTarget(
        "two nn.Linear, forward, r = 64, N ≤ 4", "≤ 1.25", "1.18", "1.043", 1.25, beside_plain(64, (1, 2, 4))
    ),
    *(
        GpuTarget(
            f"two nn.Linear, forward, r = 128, N = {n}", f"≤ {limit:.2f}", good, floor, limit,
            beside_plain(128, (n,)),
        )
        for n, limit, good, floor in (
            (1, 1.22, "1.15", "1.084"), (2, 1.27, "1.20", "1.084"), (4, 1.30, "1.23", "1.085"),
            (8, 1.35, "1.26", "1.086"),
        )
    ),
    GpuTarget(
        "two nn.Linear, forward, r = 16, N = 64", "≤ 1.35", "1.25", "1.031", 1.35, beside_plain(16, (64,))
    ),
    GpuTarget(
        "two nn.Linear, forward and backward, r = 128, N = 1 to 8", "≤ 1.40", "1.25 to 1.35", "1.09 to 1.13",
        1.40, beside_plain(128, TO_EIGHT, "training"),
    ),
    GpuTarget(
        "two nn.Linear, T = 1024, K and V stacked", "≤ 1.15", "< 1.05", "none", 1.15,
        beside_plain(128, TO_EIGHT, tokens=GPU_SMALL),
    ),
    *(
        GpuTarget(against, f"≥ {limit:g} times faster", good, floor, limit, beside_peer(peer, pools))
        for against, limit, good, floor, peer, pools in (
            ("PEFT LoRA, same rank, bfloat16 adapters", 1.25, "1.4", "1.5", LORA, (1,)),
            (AS_IT_COMES, 2.0, "2.7", "none", LORA_32, (1,)),
            ("MixLoRA-style loop, any N", 1.8, "2.1", "none", "MixLoRA-style loop", (4, 8)),
            ("transformers grouped_mm", 1.4, "1.55", "none", "transformers grouped_mm", (4, 8)),
            ("PEFT Arrow, N = 4", 2.0, "2.5", "none", "PEFT Arrow", (4,)),
            ("PEFT Arrow, N = 8", 3.0, "3.7", "none", "PEFT Arrow", (8,)),
        )
    ),
    GpuTarget(
        "activation memory of PEFT LoRA with float32 adapters", "≤ a third", "none", "none", 1 / 3,
        gpu_memory_beside(LORA_32, 1),
    ),
    GpuTarget(
        "activation memory of PEFT Arrow, N = 4", "≤ a sixth", "none", "none", 1 / 6,
        gpu_memory_beside("PEFT Arrow", 4),
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

"""The committed results, and questions to them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.generation import CACHED
from benchmarks.groups import LORA
from benchmarks.schema import Drawn, Kept, Kind, Pass, Result, Step, Timed, read

RESULTS = Path(__file__).resolve().parents[1] / "results" / "cpu"
BIG = 1024
"""From how many tokens on the targets hold."""
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

    def rows(self, kind: Kind, passes: Pass) -> Iterator[Timed]:
        """Give the timed cases of a kind and pass."""
        for result in self.of(kind):
            if result.passes == passes:
                yield from result.timed

    def pools(self, passes: Pass) -> list[Timed]:
        """Give prw's cases of the grid."""
        return [row for row in self.rows("grid", passes) if row.case == "prw"]

    def row(
        self, kind: Kind, passes: Pass, case: str, key: Key, experts: int, granularity: str = "token"
    ) -> Timed | None:
        """Find a case under even routing; None if it was not measured."""
        for row in self.rows(kind, passes):
            at = row.where
            point = (at.tokens, at.width, at.rank), at.experts, at.granularity
            if row.case == case and point == (key, experts, granularity) and at.skew == "uniform":
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
        found = {(row.where.tokens, row.where.width, row.where.rank) for row in self.rows(kind, passes)}
        return sorted((key for key in found if key[2]), key=lambda key: (key[1], key[0], key[2]))

    def kept(self) -> list[Kept]:
        """Give the counts of memory."""
        return [row for result in self.of("memory") for row in result.kept]

    def steps(self) -> Iterator[tuple[Result, Step]]:
        """Give the steps of whole models with the result that each is of."""
        for result in self.of("flux"):
            for step in result.steps:
                yield result, step

    def drawn(self) -> Iterator[tuple[Result, Drawn]]:
        """Give the ways of drawing with the result that each is of."""
        for result in self.of("generation"):
            for row in result.drawn:
                yield result, row


def load(folder: Path = RESULTS) -> Found:
    """Read a folder of results."""
    results = [read(path) for path in sorted(folder.glob("*.json"))]
    return Found(tuple(sorted(results, key=order)))


def order(result: Result) -> tuple[object, ...]:
    """Sort by what was measured: width, tokens, name."""
    first = result.timed[0].where if result.timed else None
    model = result.model
    size = (first.width, first.tokens) if first else (model.get("width", 0), model.get("rank", 0))
    return (*size, result.name)


def place(row: Timed | Kept) -> str:
    """Name a point in words."""
    at = row.where
    return f"T={at.tokens} d={at.width} r={at.rank} N={at.experts} {at.granularity}"


def over_floor(found: Found, passes: Pass) -> list[Ratio]:
    """Time over floor at the grid's points that count."""
    return [
        Ratio(row.ratio / row.floor, place(row))
        for row in found.pools(passes)
        if row.floor is not None and row.where.tokens >= BIG
    ]


def growth(found: Found, passes: Pass) -> list[Ratio]:
    """Time with 64 experts over time with one, at rank 16."""
    ratios = []
    for row in found.pools(passes):
        at = row.where
        if (at.rank, at.experts) == (16, 64) and at.tokens >= BIG:
            one = found.ratio("grid", passes, "prw", (at.tokens, at.width, 16), 1, at.granularity)
            if one is not None:
                ratios.append(Ratio(row.ratio / one, place(row)))
    return ratios


def beside_lora(found: Found, passes: Pass, experts: int) -> list[Ratio]:
    """Time of a token-routed pool over that of one PEFT LoRA of its rank."""
    ratios = []
    for row in found.pools(passes):
        at = row.where
        if (at.granularity, at.experts) == ("token", experts) and at.tokens >= BIG:
            lora = found.ratio("grid", passes, LORA, (at.tokens, at.width, at.rank), 1)
            if lora is not None:
                ratios.append(Ratio(row.ratio / lora, place(row)))
    return ratios


def faster_than(found: Found, passes: Pass, peer: str) -> list[Ratio]:
    """Time of a peer over that of a token-routed pool of as many experts."""
    ratios = []
    for row in found.rows("peers", passes):
        at = row.where
        if row.case == peer and at.tokens >= BIG:
            ours = found.row("peers", passes, "prw", (at.tokens, at.width, at.rank), at.experts)
            if ours is not None and ours.floor is not None:
                ratios.append(Ratio(row.ratio / ours.ratio, place(row), row.ratio / ours.floor))
    return ratios


def memory_beside(
    found: Found, peer: str, experts: tuple[int, ...], peer_experts: int | None, what: Callable[[Kept], float]
) -> list[Ratio]:
    """Activation memory of token-routed pools over a peer's; the peer's pool is as large where None."""
    ratios = []
    for row in found.kept():
        at = row.where
        if row.case != "prw" or at.experts not in experts or at.granularity != "token":
            continue
        wanted = at.model_copy(update={"experts": at.experts if peer_experts is None else peer_experts})
        for other in found.kept():
            if other.case == peer and other.where == wanted:
                ratios.append(Ratio(what(row) / what(other), place(row)))
    return ratios


def scene(result: Result, row: Drawn) -> str:
    """Name what was drawn in words."""
    return f"d={result.model['width']}, {row.text} text and {row.noise} noise tokens, N={row.experts}"


def cached(found: Found, ratio: Callable[[Drawn], float]) -> list[Ratio]:
    """Give a ratio of every drawing with the source cached."""
    return [
        Ratio(ratio(row), scene(result, row)) for result, row in found.drawn() if row.case.startswith(CACHED)
    ]


def five_beside_one(found: Found, what: Callable[[Drawn], float]) -> list[Ratio]:
    """Give what a pool of five takes over what a pool of one takes, both with the source cached."""
    ratios = []
    for result in found.of("generation"):
        rows = {row.experts: row for row in result.drawn if row.case.startswith(CACHED)}
        if {1, 5} <= rows.keys():
            ratios.append(Ratio(what(rows[5]) / what(rows[1]), scene(result, rows[5])))
    return ratios


def geometric_mean(ratios: list[Ratio]) -> float:
    """Give the geometric mean of ratios."""
    return statistics.geometric_mean([ratio.value for ratio in ratios])

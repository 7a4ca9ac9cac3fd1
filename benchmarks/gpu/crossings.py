"""H5: where a sorted kernel overtakes the dense one, and the limit for `auto` that follows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from benchmarks.gpu.clock import Way
from benchmarks.gpu.schema import Probe, Row

COLD: Way = ("graph", "cold")


def unmeasured(name: str, question: str, predicted: str, why: str) -> Probe:
    """Say why a prediction was not tested."""
    return Probe(name=name, question=question, predicted=predicted, measured=f"not measured: {why}")


Point = tuple[int, float]
"""Experts x rank, and a time."""


def crossing(dense: Sequence[Point], other: Sequence[Point]) -> float | None:
    """Give experts x rank from which the other kernel is no slower, between measured points.

    The first point if it is nowhere slower; None if it is slower everywhere.
    """
    gaps = [(size, math.log(one / two)) for (size, one), (_, two) in zip(dense, other, strict=True)]
    if gaps[0][1] >= 0:
        return float(gaps[0][0])
    for (low, before), (high, after) in pairwise(gaps):
        if before < 0 <= after:
            part = before / (before - after)
            return math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
    return None


def crossover(rows: Sequence[Row], tokens: int) -> Probe:
    """H5: from which experts x rank on a sorted kernel is faster than the dense one, at each rank."""
    picked = [
        row for row in rows
        if (row.at.tokens, row.at.granularity, row.at.routing) == (tokens, "token", "uniform")
        and (row.passes, row.launch, row.cache) == ("forward", *COLD)
    ]  # fmt: skip
    numbers = {}
    for sorted_kernel in ("triton", "grouped"):
        for rank in sorted({row.at.rank for row in picked if row.at.rank}):
            series = {
                case: {
                    row.at.experts * rank: row.median_us
                    for row in picked if row.at.rank == rank and row.case == case
                }
                for case in ("dense", sorted_kernel)
            }  # fmt: skip
            dense, other = series.values()
            shared = sorted(dense.keys() & other.keys())
            if len(shared) > 1:
                at = crossing([(n, dense[n]) for n in shared], [(n, other[n]) for n in shared])
                if at is not None:
                    numbers[f"{sorted_kernel}, r={rank}"] = at
    return threshold(numbers)


def threshold(numbers: dict[str, float]) -> Probe:
    """Say which limit of the dense kernel follows from the crossings."""
    question, predicted = "experts x rank at which dense and triton take equally long", "256 to 384"
    by_kernel = {
        kernel: [value for name, value in numbers.items() if name.startswith(kernel)]
        for kernel in ("triton", "grouped")
    }
    limits = {kernel: round(statistics.geometric_mean(found)) for kernel, found in by_kernel.items() if found}
    if not limits:
        return unmeasured("H5", question, predicted, "dense is faster at every measured point")
    said = ", ".join(f"{kernel} from {limit}" for kernel, limit in limits.items())
    best = min(limits.items(), key=lambda pair: pair[1])
    return Probe(
        name="H5",
        question=question,
        predicted=predicted,
        measured=said,
        numbers=numbers,
        held=256 <= limits["triton"] <= 384 if "triton" in limits else None,
        then=f"for this device: dense up to experts x rank = {best[1]}, then {best[0]}",
    )

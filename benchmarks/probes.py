"""What a GPU reaches in this very run, and predictions made before the first run on one."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Group
from benchmarks.floors import base
from benchmarks.schema import Ceiling, Point, Probe, Result, Row, SetName
from benchmarks.timing import Case, Device, Run, Way, first_line, measured, paired, prepared

COLD: Way = ("graph", "cold")
Draft = tuple[str, dict[str, float], bool | None, str]
"""What a probe says: the measurement in words, its numbers, whether the prediction held, what follows."""


def median_seconds(device: Device, run: Run, rounds: int, way: Way = ("graph", "warm")) -> float:
    """Time something alone.

    Raises:
        RuntimeError: if it cannot be recorded.
    """
    candidate = prepared(device, Case(run))
    if candidate.replay is None:
        raise RuntimeError(candidate.why_not)
    (times,) = measured(device, {"alone": candidate}, rounds, [way])
    return statistics.median(times.seconds)


def randoms(device: Device) -> Callable[..., Tensor]:
    """Give a function that makes random tensors on the device."""
    generator = torch.Generator(device.torch_device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=generator, device=device.torch_device)
        return (made * shape[-1] ** -0.5).to(getattr(torch, device.dtype))

    return random


@torch.no_grad()
def ceilings(device: Device, group: Group, chosen: SetName, known: Sequence[Result]) -> dict[str, Any]:
    """Measure both ceilings at every size of a group."""
    found = []
    for _, point in group.cases:
        found.append(ceiling(device, point, group.rounds))
        device.still_there(group.name)
    return {"ceilings": found}


def ceiling(device: Device, point: Point, rounds: int) -> Ceiling:
    """Measure products of exactly the plain projections' size, and a copy.

    Products run with a warm cache and recorded launches, and the better of two forms counts: nothing should
    be above a ceiling. The copy runs with a cold cache: it stands for memory and not for the cache.
    """
    tokens, width, random = point.tokens, point.width, randoms(device)
    hidden, weights = random(tokens, width), random(2 * width, width)
    one, two = weights.split(width)
    outs = [hidden.new_empty(tokens, width) for _ in range(2)]
    both = hidden.new_empty(tokens, 2 * width)

    def apart() -> None:
        torch.mm(hidden, one.mT, out=outs[0])
        torch.mm(hidden, two.mT, out=outs[1])

    def together() -> None:
        torch.mm(hidden, weights.mT, out=both)

    work = base(tokens, width)
    product = min(median_seconds(device, run, rounds) for run in (apart, together))
    half = int(work.moved) // 2
    source = torch.randint(0, 256, (half,), dtype=torch.uint8, device=device.torch_device)
    target = torch.empty_like(source)
    copy = median_seconds(device, lambda: target.copy_(source), rounds, COLD)
    return Ceiling(tokens=tokens, width=width, flops_per_s=work.flops / product, bytes_per_s=2 * half / copy)


def ratios(device: Device, cases: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Time cases side by side, recorded and cold, and give each one's ratio to the first."""
    candidates = {name: prepared(device, Case(run)) for name, run in cases.items()}
    times = {one.name: one.seconds for one in measured(device, candidates, rounds, [COLD])}
    first = next(iter(times.values()))
    return {name: paired(values, first).median for name, values in times.items()}


def orders_at(device: Device, point: Point, tokens: int, rounds: int) -> dict[str, float]:
    """Time the three orders of adding one expert, as ratios to the plain projections."""
    random = randoms(device)
    hidden, weights = random(tokens, point.width), [random(point.width, point.width) for _ in range(2)]
    downs, ups = random(2 * point.rank, point.width), [random(point.width, point.rank) for _ in range(2)]

    def lows() -> tuple[Tensor, ...]:
        return (hidden @ downs.mT).chunk(2, dim=-1)  # [T, d] -> 2 x [T, r]

    def plain() -> list[Tensor]:
        return [hidden @ weight.mT for weight in weights]

    def first() -> None:
        for low, up, weight in zip(lows(), ups, weights, strict=True):
            (low @ up.mT).addmm_(hidden, weight.mT)

    def after() -> None:
        for out, low, up in zip(plain(), lows(), ups, strict=True):
            out.addmm_(low, up.mT)

    def apart() -> list[Tensor]:
        return [out + low @ up.mT for out, low, up in zip(plain(), lows(), ups, strict=True)]

    found = ratios(device, {"plain": plain, "first": first, "after": after, "apart": apart}, rounds)
    return {f"{name}, T={tokens}": value for name, value in found.items() if name != "plain"}


def orders(device: Device, point: Point, tokens: Sequence[int], rounds: int) -> Draft:
    """H1: the experts' part written first, added after in place, or added out of place."""
    numbers: dict[str, float] = {}
    for number in tokens:
        numbers |= orders_at(device, point, number, rounds)
        device.release()
    first, after, apart = (numbers[f"{name}, T={point.tokens}"] for name in ("first", "after", "apart"))
    held = first <= 1.2 and 1.17 <= after <= 1.29 and 1.35 <= apart <= 1.65
    then = "" if first > after else "writing the experts' part first is faster here"
    return f"{first:.3f} / {after:.3f} / {apart:.3f} at T={point.tokens}", numbers, held, then


def stacked(device: Device, point: Point, tokens: int, rounds: int) -> Draft:
    """H2: one product for keys and values instead of two, few tokens."""
    random = randoms(device)
    hidden, weight = random(tokens, point.width), random(2 * point.width, point.width)
    one, two = weight.split(point.width)
    cases = {"two": lambda: (hidden @ one.mT, hidden @ two.mT), "stacked": lambda: hidden @ weight.mT}
    change = ratios(device, cases, rounds)["stacked"] - 1
    then = "keep the projections apart" if change > -0.05 else "offer stacked weights"
    return f"{change:+.1%} at T={tokens}", {"change": change}, -0.25 <= change <= -0.1, then


def launches(device: Device, rows: Sequence[Row], tokens: int) -> Draft:
    """H8: what the host takes to launch an operation, and what eager costs with few tokens."""
    small = torch.ones(1, device=device.torch_device)
    for _ in range(100):
        small.add_(1)
    device.synchronize()
    count, start = 500, time.perf_counter()
    for _ in range(count):
        small.add_(1)
    gap = 1e6 * (time.perf_counter() - start) / count
    device.synchronize()
    one = [row for row in rows if (row.point.tokens, row.point.experts) == (tokens, 1)]
    one = [row for row in one if (row.case, row.cache) == ("prw dense", "cold")]
    times = {row.launch: 1e3 * row.median_ms for row in one}
    words, slow = f"{gap:.1f} us", False
    if len(times) == 2:
        words += f"; prw dense, T={tokens}: {times['eager']:.0f} us eager, {times['graph']:.0f} recorded"
        slow = times["eager"] > 1.5 * times["graph"]
    numbers = {"gap_us": gap} | {f"{launch}_us": value for launch, value in times.items()}
    return words, numbers, 5 <= gap <= 8, "record graphs at few tokens" if slow else ""


# H5: where a sorted kernel overtakes the dense one, and the limit for `auto` that follows.


def crossing(dense: Sequence[tuple[int, float]], other: Sequence[tuple[int, float]]) -> float | None:
    """Give experts x rank from which the other kernel is no slower, between measured points.

    Args:
        dense: Experts x rank, and a time, of the dense kernel.
        other: The same of the other one.

    Returns:
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


def crossings(rows: Sequence[Row], tokens: int) -> dict[str, float]:
    """Find from which experts x rank on a sorted kernel is faster than the dense one, at each rank."""
    series: dict[tuple[str, int], dict[int, float]] = {}
    for row in rows:
        point = row.point
        even = (point.tokens, point.granularity, point.routing) == (tokens, "token", "uniform")
        if even and (row.launch, row.cache) == COLD and point.rank:
            series.setdefault((row.case, point.rank), {})[point.experts * point.rank] = row.median_ms
    found = {}
    for (case, rank), times in series.items():
        dense = series.get(("prw dense", rank), {})
        shared = sorted(dense.keys() & times.keys())
        if case in ("prw triton", "prw grouped") and len(shared) > 1:
            at = crossing([(size, dense[size]) for size in shared], [(size, times[size]) for size in shared])
            if at is not None:
                found[f"{case.removeprefix('prw ')}, r={rank}"] = at
    return found


def threshold(numbers: dict[str, float]) -> Draft:
    """Say which limit of the dense kernel follows from the crossings.

    Raises:
        LookupError: if dense is faster at every measured point.
    """
    limits = {}
    for kernel in ("triton", "grouped"):
        found = [value for name, value in numbers.items() if name.startswith(kernel)]
        if found:
            limits[kernel] = round(statistics.geometric_mean(found))
    if not limits:
        raise LookupError("dense is faster at every measured point")
    words = ", ".join(f"{kernel} from {limit}" for kernel, limit in limits.items())
    best = min(limits.items(), key=lambda pair: pair[1])
    held = 256 <= limits["triton"] <= 384 if "triton" in limits else None
    return words, numbers, held, f"for this device: dense up to experts x rank = {best[1]}, then {best[0]}"


@torch.no_grad()
def probes(device: Device, group: Group, chosen: SetName, known: Sequence[Result]) -> dict[str, Any]:
    """Test every prediction that can be tested here; of the others, say why not."""
    point, rounds, small = group.point, group.rounds, group.size[1]
    rows = [row for one in known if one.passes == "forward" and one.kind == "kernels" for row in one.times]
    asked: dict[str, tuple[str, str, Callable[[], Draft]]] = {
        "H1": (
            f"experts first, added after in place, added out of place; r={point.rank} N=1",
            "1.14 / 1.23 / 1.4 to 1.6 times the plain projections",
            lambda: orders(device, point, group.size, rounds),
        ),
        "H2": (
            "stacked K and V against two products",
            "-10 % to -25 %",
            lambda: stacked(device, point, small, rounds),
        ),
        "H5": (
            "experts x rank at which dense and triton take equally long",
            "256 to 384",
            lambda: threshold(crossings(rows, point.tokens)),
        ),
        "H8": (
            "microseconds of the host per launched operation",
            "5 to 8 us, times about 10 launches: as long as the base itself at T=1024",
            lambda: launches(device, rows, small),
        ),
    }
    found = []
    for name, (question, predicted, test) in asked.items():
        try:
            words, numbers, held, then = test()
        except Exception as error:
            words, numbers, held, then = f"not measured: {first_line(error)}", {}, None, ""
        said = {"measured": words, "numbers": numbers, "held": held, "then": then}
        found.append(Probe(name=name, question=question, predicted=predicted, **said))  # type: ignore[arg-type]
        device.still_there(f"probe {name}")
    return {"probes": found}

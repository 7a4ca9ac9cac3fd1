"""The predictions H1 to H8 that were made before the first run on a GPU, each beside its measurement."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.ceilings import median_seconds
from benchmarks.gpu.clock import Way, measured, prepared
from benchmarks.gpu.device import Device
from benchmarks.gpu.schema import At, Ceiling, Probe, Row
from benchmarks.gpu_model import BYTES
from benchmarks.measuring import Case, paired

COLD: Way = ("graph", "cold")
GROUPS = 8
Draw = Callable[..., Tensor]


def drawing(device: Device) -> Draw:
    """Give a function that draws random tensors on the device."""
    generator = torch.Generator(device.torch_device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=generator, device=device.torch_device)
        return (made * shape[-1] ** -0.5).to(device.dtype)

    return draw


def ratios(device: Device, cases: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Time cases side by side, recorded and cold, and give each one's ratio to the first."""
    candidates = {name: prepared(device, Case(run)) for name, run in cases.items()}
    times = {one.name: one.all for one in measured(device, candidates, rounds, [COLD])}
    first = next(iter(times.values()))
    return {name: paired(values, first).median for name, values in times.items()}


@torch.no_grad()
def orders_at(device: Device, at: At, tokens: int, rounds: int) -> dict[str, float]:
    """Time the three orders of adding one expert, as ratios to the plain projections."""
    draw = drawing(device)
    hidden, weights = draw(tokens, at.width), [draw(at.width, at.width) for _ in range(2)]
    downs, ups = draw(2 * at.rank, at.width), [draw(at.width, at.rank) for _ in range(2)]

    def lows() -> tuple[Tensor, ...]:
        return (hidden @ downs.mT).chunk(2, dim=-1)

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


def orders(device: Device, at: At, tokens: Sequence[int], rounds: int) -> Probe:
    """H1: the experts' part written first, added after in place, or added out of place."""
    numbers: dict[str, float] = {}
    for number in tokens:
        numbers |= orders_at(device, at, number, rounds)
        device.release()
    main = {name: numbers[f"{name}, T={at.tokens}"] for name in ("first", "after", "apart")}
    held = main["first"] <= 1.2 and 1.17 <= main["after"] <= 1.29 and 1.35 <= main["apart"] <= 1.65
    return Probe(
        name="H1",
        question=f"experts first, added after in place, added out of place; r={at.rank} N=1",
        predicted="1.14 / 1.23 / 1.4 to 1.6 times the plain projections",
        measured=" / ".join(f"{value:.3f}" for value in main.values()) + f" at T={at.tokens}",
        numbers=numbers,
        held=held,
        then="" if main["first"] <= main["after"] else "added after is faster here: change the order",
    )


@torch.no_grad()
def stacked(device: Device, at: At, tokens: int, rounds: int) -> Probe:
    """H2: one product for keys and values instead of two, few tokens."""
    draw = drawing(device)
    hidden, weight = draw(tokens, at.width), draw(2 * at.width, at.width)
    one, two = weight.split(at.width)
    cases = {
        "two": lambda: (hidden @ one.mT, hidden @ two.mT),
        "stacked": lambda: hidden @ weight.mT,
    }
    change = ratios(device, cases, rounds)["stacked"] - 1
    return Probe(
        name="H2",
        question=f"stacked K and V against two products, T={tokens}",
        predicted="-10 % to -25 %",
        measured=f"{change:+.1%}",
        numbers={"change": change},
        held=-0.25 <= change <= -0.1,
        then="keep the projections apart" if change > -0.05 else "offer stacked weights",
    )


@torch.no_grad()
def narrow_products(device: Device, at: At, rounds: int) -> list[Probe]:
    """H3 and H4: the product into rank space by cuBLAS, and by grouped_mm."""
    draw = drawing(device)
    hidden, columns = draw(at.tokens, at.width), 2 * at.rank
    down = draw(columns, at.width)
    one = 1e6 * median_seconds(device, lambda: hidden @ down.mT, rounds, COLD)
    shrink = Probe(
        name="H3",
        question=f"cuBLAS [{at.tokens} x {at.width}] . [{columns}]",
        predicted="10 to 14 us",
        measured=f"{one:.1f} us",
        numbers={"us": one},
        held=one <= 14,
        then="" if one <= 14 else "a split over the long axis is worth trying",
    )
    question = f"grouped_mm, the same product in {GROUPS} groups"
    if not hasattr(F, "grouped_mm"):
        return [shrink, unmeasured("H4", question, "30 us or more", "this torch has no grouped_mm")]
    downs = draw(GROUPS, columns, at.width).mT
    ends = torch.arange(1, GROUPS + 1, device=device.torch_device, dtype=torch.int32) * (at.tokens // GROUPS)
    many = 1e6 * median_seconds(device, lambda: F.grouped_mm(hidden, downs, offs=ends), rounds, COLD)
    grouped = Probe(
        name="H4",
        question=question,
        predicted="30 us or more",
        measured=f"{many:.1f} us",
        numbers={"us": many},
        held=many >= 30,
        then="" if many >= 30 else "grouped may serve large pools",
    )
    return [shrink, grouped]


def unmeasured(name: str, question: str, predicted: str, why: str) -> Probe:
    """Say why a prediction was not tested."""
    return Probe(name=name, question=question, predicted=predicted, measured=f"not measured: {why}")


Point = tuple[int, float]
"""Experts x rank, and a time."""


def crossing(dense: Sequence[Point], other: Sequence[Point]) -> float | None:
    """Give experts x rank at which two kernels are equal, between measured points; None if nowhere."""
    gaps = [(size, math.log(one / two)) for (size, one), (_, two) in zip(dense, other, strict=True)]
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
        return unmeasured("H5", question, predicted, "no two kernels cross at the measured points")
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


@torch.no_grad()
def backward_pair(device: Device, at: At, ceiling: Ceiling, rounds: int) -> Probe:
    """H7: what one kernel for u = G B and dB = G^T h could save at most; there is no such kernel."""
    draw = drawing(device)
    grads = [draw(at.tokens, at.width) for _ in range(2)]
    ups, lows = [draw(at.width, at.rank) for _ in range(2)], [draw(at.tokens, at.rank) for _ in range(2)]

    def apart() -> None:
        for grad, up, low in zip(grads, ups, lows, strict=True):
            grad @ up
            grad.mT @ low

    taken = 1e6 * median_seconds(device, apart, rounds, COLD)
    least = 1e6 * BYTES * 2 * at.tokens * at.width / ceiling.bytes_per_s
    return Probe(
        name="H7",
        question=f"u = G B and dB in one kernel, r={at.rank}",
        predicted="-15 us of about 450",
        measured=f"at most {least - taken:+.1f} us: apart {taken:.1f} us, one reading of G {least:.1f} us",
        numbers={"apart_us": taken, "one_reading_us": least},
        held=None,
        then="worth building" if taken - least > 15 else "leave it to cuBLAS",
    )


def launches(device: Device, rows: Sequence[Row], tokens: int) -> Probe:
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
    times = {
        row.launch: row.median_us for row in rows
        if row.case == "dense" and row.at.tokens == tokens and row.passes == "forward"
        and row.cache == "cold" and row.at.experts == 1
    }  # fmt: skip
    eager, slow = "", False
    if len(times) == 2:
        eager = f"; dense, T={tokens}: {times['eager']:.0f} us eager, {times['graph']:.0f} recorded"
        slow = times["eager"] > 1.5 * times["graph"]
    return Probe(
        name="H8",
        question="microseconds of the host per launched operation",
        predicted="5 to 8 us, times about 10 launches: as long as the base itself at T=1024",
        measured=f"{gap:.1f} us" + eager,
        numbers={"gap_us": gap} | {f"{launch}_us": value for launch, value in times.items()},
        held=5 <= gap <= 8,
        then="record graphs at few tokens" if slow else "",
    )


def probes(
    device: Device, at: At, tokens: Sequence[int], ceiling: Ceiling, rows: Sequence[Row], rounds: int
) -> list[Probe]:
    """Test every prediction that can be tested here."""
    small = tokens[1]
    h6 = "a Triton product over two sources against cuBLAS"
    return [
        orders(device, at, tokens, rounds),
        stacked(device, at, small, rounds),
        *narrow_products(device, at, rounds),
        crossover(rows, at.tokens),
        unmeasured("H6", h6, "0.85 to 0.97 of cuBLAS", "prw has no such kernel"),
        backward_pair(device, at, ceiling, rounds),
        launches(device, rows, small),
    ]

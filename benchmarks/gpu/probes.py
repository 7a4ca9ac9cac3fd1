"""The predictions H1 to H8 that were made before the first run on a GPU, each beside its measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.ceilings import median_seconds
from benchmarks.gpu.clock import first_line, measured, prepared
from benchmarks.gpu.crossings import COLD, crossover, unmeasured
from benchmarks.gpu.device import Device
from benchmarks.gpu.schema import At, Ceiling, Probe, Row
from benchmarks.gpu_model import BYTES
from benchmarks.measuring import Case, paired

GROUPS = 8
Draw = Callable[..., Tensor]


def drawing(device: Device) -> Draw:
    """Give a function that draws random tensors on the device."""
    generator = torch.Generator(device.torch_device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=generator, device=device.torch_device)
        return (made * shape[-1] ** -0.5).to(device.dtype)

    return draw


def ratios(device: Device, cases: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
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
def narrow_product(device: Device, at: At, rounds: int) -> Probe:
    """H3: the product into rank space by cuBLAS."""
    draw = drawing(device)
    hidden, down = draw(at.tokens, at.width), draw(2 * at.rank, at.width)
    taken = 1e6 * median_seconds(device, lambda: hidden @ down.mT, rounds, COLD)
    return Probe(
        name="H3",
        question=f"cuBLAS [{at.tokens} x {at.width}] . [{2 * at.rank}]",
        predicted="10 to 14 us",
        measured=f"{taken:.1f} us",
        numbers={"us": taken},
        held=taken <= 14,
        then="" if taken <= 14 else "a split over the long axis is worth trying",
    )


@torch.no_grad()
def grouped_product(device: Device, at: At, rounds: int) -> Probe:
    """H4: the same product by grouped_mm, rows in groups of equal size."""
    draw = drawing(device)
    hidden, downs = draw(at.tokens, at.width), draw(GROUPS, 2 * at.rank, at.width).mT
    ends = torch.arange(1, GROUPS + 1, device=device.torch_device, dtype=torch.int32) * (at.tokens // GROUPS)
    taken = 1e6 * median_seconds(device, lambda: F.grouped_mm(hidden, downs, offs=ends), rounds, COLD)
    return Probe(
        name="H4",
        question=f"grouped_mm, the same product in {GROUPS} groups",
        predicted="30 us or more",
        measured=f"{taken:.1f} us",
        numbers={"us": taken},
        held=taken >= 30,
        then="" if taken >= 30 else "grouped may serve large pools",
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


def no_such_kernel() -> Probe:
    """H6: a kernel that is not built."""
    raise LookupError("prw has no such kernel")


def probes(
    device: Device, at: At, tokens: Sequence[int], ceiling: Ceiling, rows: Sequence[Row], rounds: int
) -> list[Probe]:
    """Test every prediction that can be tested here; of the others, say why not."""
    small = tokens[1]
    asked: dict[str, tuple[str, Callable[[], Probe]]] = {
        "H1": ("the order of adding an expert", lambda: orders(device, at, tokens, rounds)),
        "H2": ("stacked K and V", lambda: stacked(device, at, small, rounds)),
        "H3": ("cuBLAS into rank space", lambda: narrow_product(device, at, rounds)),
        "H4": ("grouped_mm into rank space", lambda: grouped_product(device, at, rounds)),
        "H5": ("where dense and sorted kernels cross", lambda: crossover(rows, at.tokens)),
        "H6": ("a Triton product over two sources: 0.85 to 0.97 of cuBLAS", no_such_kernel),
        "H7": ("u = G B and dB in one kernel", lambda: backward_pair(device, at, ceiling, rounds)),
        "H8": ("the host's time per launch", lambda: launches(device, rows, small)),
    }
    found = []
    for name, (question, test) in asked.items():
        try:
            found.append(test())
        except Exception as error:
            found.append(unmeasured(name, question, "see benchmarks/gpu/probes.py", first_line(error)))
        device.still_there(f"probe {name}")
    return found

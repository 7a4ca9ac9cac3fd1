"""Interleaved timing: every case once per round, medians and spreads, ratios taken round by round."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import prw
from benchmarks.floors import forward_floor, training_floor
from benchmarks.points import Point
from benchmarks.schema import Pass, Routed, Timed, Where

if TYPE_CHECKING:  # the GPU benchmark also runs where a peer's package is missing or too old
    from benchmarks.peers import Peer

LEAST_ROUNDS, MOST_ROUNDS = 5, 25


@dataclass(frozen=True)
class Case:
    """Something to time.

    Attributes:
        run: What is timed.
        clear: Undoes what a run leaves, before the next one; not timed.
    """

    run: Callable[[], None]
    clear: Callable[[], None] = lambda: None


class Spread(NamedTuple):
    """A median and its interquartile range."""

    median: float
    iqr: float


def spread(values: Sequence[float]) -> Spread:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(tidy(median), tidy(high - low))


def tidy(value: float) -> float:
    """Keep six digits: more would be noise in a committed file."""
    return float(f"{value:.6g}")


def paired(values: Sequence[float], base: Sequence[float]) -> Spread:
    """Ratios of one case to another, round by round: what drifts over rounds falls out."""
    return spread([value / one for value, one in zip(values, base, strict=True)])


def gradients_like(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Draw gradients of keys and values; contiguous, since expanded ones are easier and break some peers."""
    generator = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(hidden.shape, generator=generator).to(hidden) for _ in range(2))
    return keys, values


def case_of(peer: Peer, hidden: Tensor, gradients: tuple[Tensor, ...], passes: Pass) -> Case:
    """Make a case of a competitor: a forward in evaluation, or a forward and backward in training.

    Args:
        peer: The competitor.
        hidden: Its input.
        gradients: Of keys and of values.
        passes: Which of the two.
    """
    model = peer.model.train(passes == "training")
    if passes == "forward":

        @torch.no_grad()
        def forward() -> None:
            model(hidden)

        return Case(forward)
    trained = [*peer.trainable(), hidden]

    def training() -> None:
        torch.autograd.backward(tuple(model(hidden)), gradients)

    def clear() -> None:
        for parameter in trained:
            parameter.grad = None

    return Case(training, clear)


def rounds_for(cases: Mapping[str, Case], budget_s: float) -> int:
    """Run each case twice, as warm-up, and fit as many rounds into a budget as the contract allows."""
    for case in cases.values():
        case.clear()
        case.run()
    start = time.perf_counter()
    for case in cases.values():
        case.clear()
        case.run()
    taken = time.perf_counter() - start
    return max(LEAST_ROUNDS, min(MOST_ROUNDS, int(budget_s / taken)))


def interleaved(benchmark: Any, cases: Mapping[str, Case], rounds: int) -> dict[str, list[float]]:
    """Time cases in turn by pytest-benchmark's clock.

    Args:
        benchmark: pytest-benchmark's fixture.
        cases: By name. Every round takes each once, in an order of its own, so that none always follows the
            one that leaves the caches worst.
        rounds: How often each runs; once, unmeasured, where benchmarks are disabled.

    Returns:
        Seconds of every round, by name; empty where benchmarks are disabled.
    """
    if benchmark.disabled:
        benchmark.pedantic(lambda: [(case.clear(), case.run()) for case in cases.values()])
        return {}
    turns = orders(list(cases), rounds)
    coming = iter(turns)

    def next_case() -> tuple[tuple[Case], dict[str, Any]]:
        case = cases[next(coming)]
        case.clear()
        return (case,), {}

    benchmark.pedantic(lambda case: case.run(), setup=next_case, rounds=len(turns))
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for name, taken in zip(turns, benchmark.stats.stats.data, strict=True):
        seconds[name].append(taken)
    return seconds


def orders(names: list[str], rounds: int) -> list[str]:
    """Draw the order of every round, always the same ones; laid end to end."""
    drawn = random.Random(0)
    return [name for _ in range(rounds) for name in drawn.sample(names, len(names))]


def routed_of(weave: prw.Weave | None, forward: Callable[[], object]) -> Routed | None:
    """Record where a pool sends its input, over all sites: shares are counted, not assumed."""
    if weave is None:
        return None
    with weave.record() as routing, torch.no_grad():
        forward()
    usage = routing.usage().mean(0)
    least, most = tidy(float(usage.min())), tidy(float(usage.max()))
    return Routed(newest=tidy(routing.share()), least=least, most=most)


def where(point: Point, plain: bool = False) -> Where:
    """Write down a point."""
    return Where(
        tokens=point.tokens,
        width=point.width,
        rank=0 if plain else point.rank,
        experts=0 if plain else point.experts,
        granularity=point.granularity,
        batch=point.batch,
        skew=point.skew,
        dtype=str(point.dtype).removeprefix("torch."),
    )


def floor_of(peer: Peer, passes: Pass, routed: Routed | None) -> float | None:
    """Give the floor of a case that does the arithmetic which the floor counts."""
    if peer.weave is None and peer.name != "PEFT LoRA":
        return None
    point = peer.point
    if passes == "forward":
        return forward_floor(point.rank, point.width)
    return training_floor(point.rank, point.width, 1.0 if routed is None else routed.newest)


def timed(
    peers: Mapping[str, Peer],
    routed: Mapping[str, Routed | None],
    seconds: Mapping[str, list[float]],
    passes: Pass,
) -> list[Timed]:
    """Turn seconds into rows; the first case is what the others are compared with."""
    base = next(iter(seconds.values()))
    rows = []
    for key, values in seconds.items():
        peer, of_time, of_ratio = peers[key], spread(values), paired(values, base)
        rows.append(
            Timed(
                case=peer.name,
                where=where(peer.point, plain=peer.name == "two nn.Linear"),
                median_ms=tidy(1e3 * of_time.median),
                iqr_ms=tidy(1e3 * of_time.iqr),
                ratio=of_ratio.median,
                ratio_iqr=of_ratio.iqr,
                floor=floor_of(peer, passes, routed[key]),
                routed=routed[key],
            )
        )
    return rows

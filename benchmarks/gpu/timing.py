"""Turns a point into timed rows: the routed projection by every kernel, or the library beside its peers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.cases import LORA, LORA_32, NEVER_RECORDED, PLAIN, STACKED
from benchmarks.gpu.clock import Candidate, Times, first_line, measured, prepared
from benchmarks.gpu.device import Device
from benchmarks.gpu.floors import floors
from benchmarks.gpu.problem import Problem, case_of_run, problem
from benchmarks.gpu.schema import At, Ceiling, Failure, Row
from benchmarks.measuring import Case, case_of, gradients_like, paired, spread, tidy
from benchmarks.points import Point, hidden_of
from benchmarks.schema import Pass

Make = Callable[[], Case]


@dataclass
class Prepared:
    """Cases that run here, and those that do not."""

    candidates: dict[str, Candidate] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def add(self, device: Device, name: str, at: At, make: Make, record: bool = True) -> None:
        """Build a case and warm it up; what fails is written down, and the others go on.

        Raises:
            DeviceLostError: if nothing can go on.
        """
        candidate = None
        try:
            candidate = prepared(device, make(), record)
        except Exception as error:  # it holds what failed in memory until this block ends
            self.failures.append(Failure(case=name, at=at, why=first_line(error)))
        if candidate is None:
            device.still_there(name)
            return
        self.candidates[name] = candidate
        if candidate.replay is None:
            self.failures.append(Failure(case=f"{name}, recorded", at=at, why=candidate.why_not))


@dataclass(frozen=True)
class Placed:
    """What a row says beside its times.

    Attributes:
        at: The point.
        floor: Least seconds as one kernel and as several; None where the case computes something else.
    """

    at: At
    floor: tuple[float, float] | None = None


def rows(times: Sequence[Times], placed: Mapping[str, Placed], passes: Pass) -> Iterator[Row]:
    """Turn times into rows, each beside the plain projections launched alike."""
    plain = {one.way: one.all for one in times if one.name == PLAIN}
    for one in times:
        if one.way not in plain:
            continue
        of_time, of_ratio = spread(one.all), paired(one.all, plain[one.way])
        at, floor = placed[one.name].at, placed[one.name].floor
        base, marginal = statistics.median(plain[one.way]), None
        if floor is not None and floor[0] > base and one.name != PLAIN:
            marginal = (of_time.median - base) / (floor[0] - base)
        yield Row(
            case=one.name,
            at=at,
            passes=passes,
            launch=one.way[0],
            cache=one.way[1],
            median_us=tidy(1e6 * of_time.median),
            iqr_us=tidy(1e6 * of_time.iqr),
            repeats_us=tuple(tidy(1e6 * statistics.median(repeat)) for repeat in one.repeats),
            ratio=of_ratio.median,
            ratio_iqr=of_ratio.iqr,
            floor_us=None if floor is None else tidy(1e6 * floor[0]),
            unfused_us=None if floor is None else tidy(1e6 * floor[1]),
            floor_over_time=None if floor is None else tidy(floor[0] / of_time.median),
            marginal=None if marginal is None else tidy(marginal),
        )


def without_experts(at: At) -> At:
    """Give the point of a plain projection."""
    return at.model_copy(update={"rank": 0, "experts": 0, "routing": "uniform", "granularity": "token"})


def kernel_rows(
    device: Device, at: At, passes: Pass, names: Sequence[str], ceiling: Ceiling, rounds: int
) -> tuple[list[Row], list[Failure]]:
    """Time the routed projection by every kernel, beside two plain projections and a stacked one."""
    given = problem(at, device.torch_device)
    placed = {PLAIN: Placed(without_experts(at)), STACKED: Placed(without_experts(at))}
    used, newest = len(given.ids.unique()), float((given.ids == at.experts - 1).double().mean())
    plain_floor = floors(without_experts(at), passes, ceiling, 0, 0.0)
    placed = {name: Placed(place.at, plain_floor) for name, place in placed.items()}
    floor = floors(at, passes, ceiling, used, newest)
    found = Prepared()
    found.add(device, PLAIN, placed[PLAIN].at, lambda: case_of_run(given.plain, given, passes))
    found.add(device, STACKED, placed[STACKED].at, lambda: stacked_case(given, passes))
    for name in names:
        placed[name] = Placed(at, floor)
        found.add(device, name, at, kernel_case(given, name, passes))
    return finish(device, found, placed, passes, rounds)


def kernel_case(given: Problem, name: str, passes: Pass) -> Make:
    """Make a kernel's case when it is asked for."""
    return lambda: case_of_run(lambda: given.routed(name), given, passes)


def stacked_case(given: Problem, passes: Pass) -> Case:
    """Make the case of one Linear that gives keys and values side by side."""
    weight = torch.cat([weight for weight, _ in given.bases])
    bias = torch.cat([bias for _, bias in given.bases])
    both = torch.cat(given.grads, dim=-1)
    if passes == "forward":
        return case_of_run(lambda: (F.linear(given.hidden, weight, bias),), given, passes)

    def training() -> None:
        F.linear(given.hidden, weight, bias).backward(both)

    def clear() -> None:
        given.hidden.grad = None

    return Case(training, clear)


def finish(
    device: Device, found: Prepared, placed: Mapping[str, Placed], passes: Pass, rounds: int
) -> tuple[list[Row], list[Failure]]:
    """Time what was prepared, give the memory back."""
    times: list[Times] = []
    try:
        times += measured(device, found.candidates, rounds)
    except RuntimeError as error:
        names = ", ".join(found.candidates)
        found.failures.append(Failure(case=names, at=None, why=first_line(error)))
    found.candidates.clear()
    device.still_there("timing")
    return list(rows(times, placed, passes)), found.failures


def point_of(device: Device, at: At, dtype: torch.dtype | None) -> Point:
    """Give the same point as the benchmarks of the CPU have it, for the peers' builders."""
    return Point(
        at.tokens, at.width, at.rank, at.experts, at.granularity, at.batch,
        dtype=device.dtype, expert_dtype=dtype, device=str(device.torch_device),
    )  # fmt: skip


def built(device: Device, name: str, at: At) -> tuple[Any, Tensor]:
    """Build a competitor and its input; what it needs is imported only now, and may be missing."""
    building: Any = import_module("benchmarks.peers")
    point = point_of(device, at, None if name == LORA_32 else device.dtype)
    return building.build(LORA if name == LORA_32 else name, point), hidden_of(point)


def peer_case(device: Device, name: str, at: At, passes: Pass) -> Make:
    """Make a competitor's case when it is asked for."""

    def make() -> Case:
        peer, hidden = built(device, name, at)
        return case_of(peer, hidden, gradients_like(hidden), passes)

    return make


def peer_rows(
    device: Device, at: At, passes: Pass, names: Sequence[str], ceiling: Ceiling, rounds: int
) -> tuple[list[Row], list[Failure]]:
    """Time the library as a whole beside peers: every case is a model with a router of its own."""
    floor = floors(at, passes, ceiling, at.experts, 1 / max(at.experts, 1))
    one = at.model_copy(update={"experts": 1})
    found, placed = Prepared(), {PLAIN: Placed(without_experts(at))}
    for name in (PLAIN, *names):
        where = one if name in (PLAIN, LORA, LORA_32) else at
        placed.setdefault(name, Placed(where, floor if name.startswith("prw") else None))
        make = peer_case(device, name, where, passes)
        found.add(device, name, where, make, record=name not in NEVER_RECORDED)
    return finish(device, found, placed, passes, rounds)

"""Measures one group on a device: builds its cases, times them in turn, and gives the result."""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.baselines import Peer, build
from benchmarks.cases import LORA, NEVER_RECORDED, PLAIN, STACKED, Group
from benchmarks.checks import checks
from benchmarks.floors import base, forward_floor, least_seconds, training_floor
from benchmarks.points import bases_of, gradients_like, hidden_of
from benchmarks.schema import Cache, Ceiling, Failure, Kind, Memory, Pass, Point, Result, Routed, Row, SetName
from benchmarks.store import origin
from benchmarks.timing import (
    MIB,
    Candidate,
    Case,
    Device,
    Times,
    Way,
    beside,
    first_line,
    measured,
    prepared,
    rounds_within,
    saved_bytes,
    tidy,
)

Fields = dict[str, Any]
"""What a kind of group adds to its result."""
Make = Callable[[], Case]
Measure = Callable[[Device, Group, SetName, Sequence[Result]], Fields]


def measure(device: Device, group: Group, chosen: SetName, known: Sequence[Result] = ()) -> Result:
    """Measure a group; floors follow from the ceilings among the results known so far.

    Raises:
        DeviceLostError: if the device went with it.
    """
    fields = {"rounds": 1} | MEASURES[group.kind](device, group, chosen, known)
    passes = group.passes if group.kind in ("grid", "peers", "skew", "kernels", "flux") else None
    now = origin(device, group.kind)
    return Result(kind=group.kind, name=group.name, set=chosen, origin=now, passes=passes, **fields)


@dataclass
class Cases:
    """Cases of a group that run here, by key, and those that do not; on a CPU all must."""

    device: Device
    candidates: dict[str, Candidate] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def add(self, key: str, make: Make, point: Point | None = None, record: bool = True) -> None:
        """Build a case and warm it up; what fails is written down, and the others go on.

        Raises:
            DeviceLostError: if nothing can go on.
        """
        candidate = None
        try:
            candidate = prepared(self.device, make(), record)
        except Exception as error:  # it holds what failed in memory until this block ends
            self.fail(key, error, point)
        if candidate is None:
            self.device.still_there(key)
            return
        self.candidates[key] = candidate
        if record and candidate.why_not:
            self.failures.append(Failure(case=f"{key}, recorded", point=point, why=candidate.why_not))

    def timed(self, group: Group, chosen: SetName, ways: Sequence[Way] = ()) -> tuple[int, list[Times]]:
        """Time everything, give the memory back, and give the number of rounds and the times."""
        gc.collect()
        rounds = 1 if chosen == "smoke" else group.rounds
        rounds = rounds or rounds_within(self.device, self.candidates, group.budget_s)
        times: list[Times] = []
        try:
            times = measured(self.device, self.candidates, rounds, ways)
        except RuntimeError as error:
            self.fail(", ".join(self.candidates), error)
        self.candidates.clear()
        self.device.still_there("timing")
        return rounds, times

    def fail(self, case: str, error: Exception, point: Point | None = None) -> None:
        """Write a failure down, or raise it."""
        if self.device.name == "cpu":
            raise error
        self.failures.append(Failure(case=case, point=point, why=first_line(error)))


def projections(device: Device, group: Group, chosen: SetName, known: Sequence[Result]) -> Fields:
    """Time the projections of a site as users get them: every case is a model with a router of its own."""
    found, built = Cases(device), dict[str, tuple[Peer, Routed | None, int]]()
    shared = gradients_like(hidden_of(group.cases[0][1], device.torch_device))  # nobody writes to them

    def make(key: str, name: str, point: Point) -> Case:
        peer = build(name, point, device.torch_device)
        built[key] = (peer, *peer.recorded())
        return peer.case(group.passes, shared)

    for name, point in group.cases:
        key = f"{name}, {point.label()}"
        found.add(key, partial(make, key, name, point), point, record=name not in NEVER_RECORDED)
    rounds, times = found.timed(group, chosen)
    plain = {one.way: one.seconds for one in times if built[one.name][0].name == PLAIN}
    rows = []
    for one in (one for one in times if one.way in plain):
        peer, routed, used = built[one.name]
        sizes = [ceiling for result in known for ceiling in result.ceilings]
        floor = floor_of(peer, group.passes, routed, used, statistics.median(plain[one.way]), sizes)
        what = {"case": peer.name, "point": peer.point, "floor": floor, "routed": routed}
        how = {"launch": one.way[0], "cache": one.way[1]}
        rows.append(Row(**what, **how, **beside(one.seconds, plain[one.way])))
    return {"rounds": rounds, "times": rows, "failures": found.failures}


def floor_of(
    peer: Peer, passes: Pass, routed: Routed | None, used: int, plain_s: float, ceilings: Sequence[Ceiling]
) -> float | None:
    """Give the least ratio to the plain projections: by measured ceilings, else by operations alone."""
    point, newest = peer.point, 1.0 if routed is None else routed.newest
    if peer.weave is None and peer.name not in (PLAIN, STACKED, LORA):
        return None  # another computation
    for one in ceilings:
        if (one.tokens, one.width) == (point.tokens, point.width):
            least = least_seconds(point, passes, one, used or min(point.experts, 1), newest)
            return tidy(least / plain_s)
    if not point.rank:
        return None
    if passes == "forward":
        return forward_floor(point.rank, point.width)
    return training_floor(point.rank, point.width, newest)


def memory(device: Device, group: Group, chosen: SetName, known: Sequence[Result]) -> Fields:
    """Count the activation memory of every case."""
    found, rows = Cases(device), []
    for name, point in group.cases:
        try:
            rows.append(counted(device, build(name, point, device.torch_device)))
        except Exception as error:
            found.fail(f"{name}, memory", error, point)
        device.still_there(name)
    return {"memory": rows, "failures": found.failures}


def counted(device: Device, peer: Peer) -> Memory:
    """Count one competitor's forward and backward, after one that warms up."""
    case = peer.case("training", gradients_like(peer.hidden))
    case.run()
    case.clear()
    saved = saved_bytes(lambda: tuple(peer.model(peer.hidden)), peer.model.parameters())
    peak = device.peak_bytes(case.run)
    case.clear()
    return Memory(case=peer.name, point=peer.point, saved_mib=tidy(saved / MIB), peak_mib=tidy(peak / MIB))


def flux(device: Device, group: Group, chosen: SetName, known: Sequence[Result]) -> Fields:
    """Time a step of a whole model: plain, with LoRA, with pools. Beside a GPU diffusers may be missing."""
    module: Any = import_module("benchmarks.flux")
    geometry, found = module.geometry_of(group.size), Cases(device)
    pools = [point.experts for _, point in group.cases]
    batch, built = module.inputs(geometry, device), module.models(geometry, device, pools)
    for name, model in built.items():
        found.add(name, partial(module.step, model, batch, group.passes), record=False)
    rounds, times = found.timed(group, chosen, device.ways[-1:])
    rows = module.steps(group.passes, built, {one.name: one.seconds for one in times}, batch)
    return {"rounds": rounds, "setup": geometry.setup(), "steps": rows, "failures": found.failures}


def generation(device: Device, group: Group, chosen: SetName, known: Sequence[Result]) -> Fields:
    """Time whole pictures."""
    module: Any = import_module("benchmarks.generation")
    *size, steps = group.size
    geometry, found = import_module("benchmarks.flux").geometry_of(tuple(size)), Cases(device)
    ways = module.generators(geometry)
    for name, one in ways.items():
        found.add(name, partial(Case, partial(one.generate, steps)))
    rounds, times = found.timed(group, chosen)
    rows = module.pictures(device, geometry, steps, ways, times)
    return {"rounds": rounds, "setup": geometry.setup(), "pictures": rows}


def files(device: Device, group: Group, chosen: SetName, known: Sequence[Result]) -> Fields:
    """Time the way from files to tokens, and what a training step spends outside the model."""
    module: Any = import_module("benchmarks.input")
    before, found = os.getloadavg()[0], Cases(device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The loader warns where workers outnumber cores; that is what is measured here.
        with (
            patch.dict(os.environ, {"HF_DATASETS_CACHE": str(folder / "arrow")}),
            patch("os.sched_getaffinity", lambda process: range(8)),
        ):
            ways = {str(tuple(way)): (way, case) for way, case in module.ways_in(folder, chosen)}
            for key, (_, case) in ways.items():
                found.add(key, partial(Case, case.run, case.clear))
            rounds, times = found.timed(group, chosen)
        shares = module.shares(folder, chosen)
    rows = [module.pipeline(ways[one.name][0], one.seconds, chosen) for one in times]
    about = {"setup": module.setup(chosen), "load": (before, os.getloadavg()[0])}
    return {"rounds": rounds, "pipelines": rows, "shares": shares, **about}


@torch.no_grad()
def ceilings(device: Device, group: Group, chosen: SetName, known: Sequence[Result]) -> Fields:
    """Measure products of exactly the plain projections' size, and a copy, at every size of a group.

    Products run with a warm cache and recorded launches, and the better of two forms counts: nothing should
    be above a ceiling. The copy runs with a cold cache: it stands for memory and not for the cache.
    """
    found, where = [], device.torch_device
    for point in (point for _, point in group.cases):
        tokens, width, work = point.tokens, point.width, base(point.tokens, point.width)
        hidden = hidden_of(point, where).view(tokens, width)
        weights = [weight for weight, _ in bases_of(width, point.dtype, where)]
        stacked, both = torch.cat(weights), hidden.new_empty(tokens, 2 * width)
        outs = hidden.new_empty(2, tokens, width)
        source = torch.randint(0, 256, (int(work.moved) // 2,), dtype=torch.uint8, device=where)
        target = torch.empty_like(source)
        seconds = partial(median_seconds, device, group.rounds)
        pairs = list(zip(weights, outs, strict=True))
        apart = seconds(lambda x=hidden, p=pairs: [torch.mm(x, w.mT, out=o) for w, o in p], "warm")
        together = seconds(lambda x=hidden, w=stacked, o=both: torch.mm(x, w.mT, out=o), "warm")
        copy = seconds(lambda t=target, s=source: t.copy_(s), "cold")
        reached = {"flops_per_s": work.flops / min(apart, together), "bytes_per_s": 2 * source.nbytes / copy}
        found.append(Ceiling(tokens=tokens, width=width, **reached))
        device.still_there(group.name)
    return {"ceilings": found}


def median_seconds(device: Device, rounds: int, run: Callable[[], Any], cache: Cache) -> float:
    """Time something alone, recorded.

    Raises:
        RuntimeError: if it cannot be recorded.
    """
    candidate = prepared(device, Case(run))
    if candidate.replay is None:
        raise RuntimeError(candidate.why_not)
    (times,) = measured(device, {"alone": candidate}, rounds, [("graph", cache)])
    return statistics.median(times.seconds)


MEASURES: Mapping[Kind, Measure] = {
    **dict.fromkeys(("grid", "peers", "skew", "kernels"), projections),
    "memory": memory,
    "flux": flux,
    "generation": generation,
    "input": files,
    "checks": checks,
    "ceilings": ceilings,
}

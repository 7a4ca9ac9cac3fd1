"""Goes through the list: checks first, then what they allow, each group written as it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.cases import KERNELS, SIZES, Task, large_check, small_check, tasks
from benchmarks.gpu.ceilings import ceiling
from benchmarks.gpu.checks import Bench, checked, may_be_timed
from benchmarks.gpu.clock import first_line
from benchmarks.gpu.device import Device, DeviceLostError
from benchmarks.gpu.flux import flux_steps
from benchmarks.gpu.peaks import peaks
from benchmarks.gpu.probes import probes
from benchmarks.gpu.schema import At, Ceiling, Check, Failure, GpuResult, Group, Row
from benchmarks.gpu.store import with_group, with_left, write
from benchmarks.gpu.timing import kernel_rows, peer_rows
from prw.kernels import Case, choose

LOST = "lost the device: "
ALWAYS = ("checks", "ceilings")
"""Kinds that come along with whatever is asked for."""


@dataclass
class Runner:
    """One run.

    Attributes:
        device: Where.
        result: What there is so far.
        path: The file that it is written to.
        deadline: When no further group is started, as time.time().
        say: Takes a line for the terminal.
        only: Parts of names: of the groups, those that have one; empty means all.
    """

    device: Device
    result: GpuResult
    path: Path
    deadline: float
    say: Callable[[str], None]
    only: Sequence[str] = ()
    _bench: Bench | None = field(default=None, init=False)
    _points: Group | None = field(default=None, init=False)
    """What the points of a group that is under way have given, in case the device is lost at the next."""

    def run(self) -> GpuResult:
        """Measure what is missing, until the list or the time ends.

        Raises:
            DeviceLostError: if this process can measure no more; what there is has been written.
        """
        todo = tasks(self.result.mode)
        order = [task.name for task in todo]
        for task in todo:
            if self.result.group(task.name) is not None or not self.asked_for(task):
                continue
            if time.time() > self.deadline:
                self.say(f"the time is spent before {task.name}; the same command goes on from here")
                break
            start, lost = time.perf_counter(), None
            try:
                group = self.group(task)
            except DeviceLostError as error:
                lost = error
                there = self._points or Group(name=task.name, seconds=0)
                failures = (*there.failures, failure(task, f"{error}", LOST))
                group = there.model_copy(update={"failures": failures})
            group = group.model_copy(update={"seconds": time.perf_counter() - start})
            self.result = with_left(with_group(self.result, group, order), order)
            write(self.result, self.path)
            self.say(said(group))
            if lost is not None or any(one.why.startswith(LOST) for one in group.failures):
                raise DeviceLostError(task.name)
        self.result = with_left(self.result, order)
        write(self.result, self.path)
        return self.result

    def asked_for(self, task: Task) -> bool:
        """Tell whether a task belongs to this run."""
        return not self.only or task.kind in ALWAYS or any(part in task.name for part in self.only)

    def group(self, task: Task) -> Group:
        """Do a task. What it raises beside a lost device is written as its failure."""
        if task.kind != "checks":
            self._bench = None  # what it knows lies in the device's memory
        self._points = None
        try:
            return getattr(self, task.kind)(task)  # type: ignore[no-any-return]
        except DeviceLostError:
            raise
        except Exception as error:
            why = first_line(error)
        self.device.still_there(task.name)
        return Group(name=task.name, seconds=0, failures=[failure(task, why)])

    def allowed(self) -> list[str]:
        """List the kernels that may be timed: checked, right, and never the end of the device."""
        lost = {
            word for group in self.result.groups for one in group.failures if one.why.startswith(LOST)
            for word in one.case.split()
        }  # fmt: skip
        checks = self.result.checks()
        return [kernel for kernel in KERNELS if may_be_timed(kernel, checks) and kernel not in lost]

    def auto(self, at: At) -> bool:
        """Tell whether the kernel that `auto` takes at a point may be timed."""
        batch = at.tokens // at.batch if at.granularity == "sample" else 1
        case = Case(self.device.torch_device, self.device.dtype, at.experts, at.rank, 1, batch)
        taken = choose(case).name
        return taken in self.allowed() or taken not in KERNELS

    def ours(self, at: At) -> list[str]:
        """List the library's own cases beside peers: as it comes, and by the kernels that one opts into."""
        names = ["prw"] if self.auto(at) else []
        return names + (["prw triton"] if "triton" in self.allowed() else [])

    def ceiling(self, tokens: int) -> Ceiling:
        """Find the measured ceilings of a size.

        Raises:
            LookupError: if they were not measured.
        """
        found = [one for group in self.result.groups for one in group.ceilings if one.tokens == tokens]
        if not found:
            raise LookupError(f"the ceilings at T={tokens} were not measured, so there is no floor")
        return found[0]

    def checks(self, task: Task) -> Group:
        sizes = SIZES[self.result.mode]
        if self._bench is None:
            inductor = self.result.mode == "full"
            self._bench = Bench(self.device, small_check(sizes), large_check(sizes), inductor)
        (kernel,), found = task.cases, list[Check]()
        failures = []
        try:
            for check in checked(self._bench, kernel):
                found.append(check)
        except DeviceLostError:
            failures.append(Failure(case=kernel, at=None, why=f"{LOST}{found[-1].check if found else ''}"))
        return Group(name=task.name, seconds=0, checks=found, failures=failures)

    def ceilings(self, task: Task) -> Group:
        rounds = SIZES[self.result.mode].rounds
        found = []
        for at in task.points:
            found.append(ceiling(self.device, at, rounds))
            self.device.still_there(task.name)
        return Group(name=task.name, seconds=0, ceilings=found)

    def kernels(self, task: Task) -> Group:
        rounds = SIZES[self.result.mode].rounds
        rows: list[Row] = []
        failures: list[Failure] = []
        for at in task.points:
            names = [*self.allowed(), *(["auto"] if self.auto(at) else [])]
            ceiling = self.ceiling(at.tokens)
            try:
                more, wrong = kernel_rows(self.device, at, task.passes, names, ceiling, rounds)
            except DeviceLostError:
                raise
            except Exception as error:
                more, wrong = [], [Failure(case=task.name, at=at, why=first_line(error))]
            self.device.still_there(task.name)
            rows += more
            failures += wrong
            self._points = Group(name=task.name, seconds=0, rows=rows, failures=failures)
        return self._points or Group(name=task.name, seconds=0)

    def peers(self, task: Task) -> Group:
        (at,) = task.points
        names = [*self.ours(at), *task.cases]
        rounds = SIZES[self.result.mode].rounds
        rows, failures = peer_rows(self.device, at, task.passes, names, self.ceiling(at.tokens), rounds)
        return Group(name=task.name, seconds=0, rows=rows, failures=failures)

    def probes(self, task: Task) -> Group:
        (at,), sizes = task.points, SIZES[self.result.mode]
        found = probes(
            self.device, at, sizes.tokens, self.ceiling(at.tokens), self.result.rows(), sizes.rounds
        )
        return Group(name=task.name, seconds=0, probes=found)

    def memory(self, task: Task) -> Group:
        found, failures = peaks(self.device, task.points, self.ours(task.points[-1]), task.cases)
        return Group(name=task.name, seconds=0, peaks=found, failures=failures)

    def flux(self, task: Task) -> Group:
        (at,), sizes = task.points, SIZES[self.result.mode]
        ours = self.auto(at.model_copy(update={"experts": 8}))
        steps, failures = flux_steps(self.device, sizes.flux, at.rank, max(sizes.rounds // 2, 1), ours)
        return Group(name=task.name, seconds=0, steps=steps, failures=failures)


def failure(task: Task, what: str, why: str = "") -> Failure:
    """Write down that a whole task failed; a lost device names the case that it went with."""
    if why:
        return Failure(case=what, at=None, why=f"{why}{task.name}")
    return Failure(case=task.name, at=None, why=what)


def said(group: Group) -> str:
    """Say in a line what a group gave."""
    wrong = [check for check in group.checks if check.passed is False]
    parts = [
        f"{len(group.checks) - len(wrong)} of {len(group.checks)} checks passed or not made"
        if group.checks
        else "",
        f"{len(group.rows)} rows" if group.rows else "",
        f"{len(group.failures)} without a number" if group.failures else "",
    ]
    return f"{group.name}: {group.seconds:.1f} s  " + ", ".join(part for part in parts if part)

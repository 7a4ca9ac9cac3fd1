"""`python -m benchmarks.gpu`: checks the kernels on this machine's GPU, times them, writes results."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.cases import GPU_KERNELS, OURS, Group, gpu_groups
from benchmarks.checks import LOST, may_be_timed
from benchmarks.console import lines
from benchmarks.report import gpu_verdicts, threshold
from benchmarks.run import measure
from benchmarks.schema import Failure, Point, Result, SetName
from benchmarks.store import RefusedError, done, gpu_folder, origin, write
from benchmarks.timing import Cuda, Device, DeviceLostError, Rehearsal, first_line
from prw.kernels import VARIABLE, Case, choose

BUDGET_S = 480.0
NO_NUMBERS, USAGE, LOST_DEVICE = 1, 2, 3  # exit codes: no kernel was right; cannot run here; device lost
ALWAYS = ("checks", "ceilings")  # kinds that come along with whatever is asked for


def parser() -> argparse.ArgumentParser:
    """Describe the command."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    made.add_argument("--rehearse", action="store_true", help="on the CPU, tiny: tests this command alone")
    made.add_argument(
        "--output", type=Path, help="folder of the results (default: benchmarks/results/gpu-...)"
    )
    budget = "seconds after which no further group is started"
    made.add_argument("--budget", type=seconds, default=BUDGET_S, help=budget)
    made.add_argument(
        "--only", default="", help="groups whose names contain one of these, separated by commas"
    )
    made.add_argument("--list", action="store_true", help="list the groups, most important first, and end")
    return made


def seconds(text: str) -> float:
    """Read a positive number of seconds."""
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text}")
    return float(text)


def device_of(rehearse: bool) -> Device:
    """Take the device.

    Raises:
        RefusedError: if there is none, or a kernel is forced from outside.
    """
    if os.environ.get(VARIABLE, "").strip():
        raise RefusedError(
            f"{VARIABLE} is set, so every pool would be measured with one kernel, under the names of others. "
            "Unset it."
        )
    if rehearse:
        return Rehearsal()
    if not torch.cuda.is_available():
        raise RefusedError(
            f"this benchmark needs a CUDA device, and torch {torch.__version__} sees none. Install a CUDA "
            "build of torch and look at `nvidia-smi`; `make bench` measures on a CPU, and --rehearse tries "
            "this command there."
        )
    return Cuda()


def groups_of(only: str, chosen: SetName) -> list[Group]:
    """List the groups that --only asks for.

    Raises:
        RefusedError: if a part fits no group.
    """
    parts, groups = [part.strip() for part in only.split(",") if part.strip()], gpu_groups(chosen)
    for part in parts:
        if not any(part in group.name for group in groups):
            names = ", ".join(group.name for group in groups)
            raise RefusedError(f"--only {part} fits no group; there are: {names}.")
    wanted = [group.kind in ALWAYS or any(part in group.name for part in parts) for group in groups]
    return [group for group, one in zip(groups, wanted, strict=True) if one or not parts]


@dataclass
class GpuRun:
    """One run through the list; `known` holds the results so far, of this process and of earlier ones."""

    device: Device
    chosen: SetName
    folder: Path
    known: list[Result] = field(default_factory=list)

    def go_on(self, groups: Sequence[Group], deadline: float) -> None:
        """Measure what is missing, until the list or the time ends.

        Raises:
            DeviceLostError: if this process can measure no more; what there is has been written.
        """
        found = [done(self.folder, one.name, origin(self.device, one.kind), self.chosen) for one in groups]
        self.known += [result for result in found if result is not None]
        left = [group for group, result in zip(groups, found, strict=True) if result is None]
        for place, group in enumerate(left):
            if time.time() > deadline:
                rest = ", ".join(group.name for group in left[place:])
                say(f"the time is spent; the same command goes on from here. Left: {rest}")
                return
            start = time.perf_counter()
            result = self.measured(group)
            self.known.append(result)
            write(result, self.folder)
            say(f"\n{group.name}: {time.perf_counter() - start:.1f} s", *lines(result))
            if any(one.why.startswith(LOST) for one in result.failures):
                raise DeviceLostError(group.name)

    def measured(self, group: Group) -> Result:
        """Measure a group without the kernels that are not known to be right; what fails is its result."""
        cases = tuple(case for case in group.cases if group.kind in ALWAYS or self.is_right(*case))
        try:
            return measure(self.device, replace(group, cases=cases), self.chosen, self.known)
        except DeviceLostError as error:
            failure = Failure(case=f"{error}", why=f"{LOST}{group.name}")
        except Exception as error:
            failure = Failure(case=group.name, why=first_line(error))
            self.device.still_there(group.name)
        fields = {"kind": group.kind, "name": group.name, "set": self.chosen, "rounds": 1}
        return Result(**fields, origin=origin(self.device, group.kind), failures=(failure,))  # type: ignore[arg-type]

    def allowed(self) -> list[str]:
        """List the kernels that may be timed: checked, right, and never the end of the device."""
        failures = [one for result in self.known for one in result.failures if one.why.startswith(LOST)]
        lost = {word.strip(",") for one in failures for word in one.case.split()}
        found = [check for result in self.known for check in result.checks]
        return [kernel for kernel in GPU_KERNELS if may_be_timed(kernel, found) and kernel not in lost]

    def is_right(self, case: str, point: Point) -> bool:
        """Say whether a case may be timed: of prw's own, those whose kernel is known to be right."""
        if not case.startswith(OURS):
            return True
        kernel = case.removeprefix(OURS).strip()
        if not kernel:  # what a pool takes by itself
            rows = point.tokens // point.batch if point.granularity == "sample" else 1
            dtype = getattr(torch, point.dtype)
            asked = Case(self.device.torch_device, dtype, point.experts, point.rank, 1, rows, point.width)
            kernel = choose(asked).name
        return kernel in self.allowed() or kernel not in GPU_KERNELS


def say(*said: str) -> None:
    """Print lines at once."""
    sys.stdout.write("".join(f"{line}\n" for line in said))
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with arguments as from a command line, and give the exit code."""
    asked = parser().parse_args(arguments)
    chosen: SetName = "rehearsal" if asked.rehearse else "full"
    if asked.list:
        say(*(group.name for group in gpu_groups(chosen)))
        return 0
    deadline = time.time() + asked.budget
    try:
        groups, device = groups_of(asked.only, chosen), device_of(asked.rehearse)
        torch.set_float32_matmul_precision("highest")
        run = GpuRun(device, chosen, asked.output or gpu_folder(origin(device), chosen))
        say(f"{device.name}, {device.facts()}; results go to {run.folder}")
        run.go_on(groups, deadline)
    except RefusedError as error:
        sys.stderr.write(f"error: {error}\n")
        return USAGE
    except DeviceLostError as error:
        say(f"the device was lost at {error}; the same command goes on without the kernel that ran last")
        return LOST_DEVICE
    judged = gpu_verdicts(run.known)
    say("\nTargets", *(f"{one.target}: {one.wanted}; {one.measured}, {one.word}" for one in judged))
    say("", threshold(run.known))
    return 0 if run.allowed() else NO_NUMBERS


if __name__ == "__main__":
    sys.exit(main())

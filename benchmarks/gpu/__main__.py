"""`python -m benchmarks.gpu`: checks the kernels on this machine's GPU, times them, writes one result."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.cases import tasks
from benchmarks.gpu.checks import may_be_timed
from benchmarks.gpu.cuda import Cuda
from benchmarks.gpu.device import Device, DeviceLostError, Rehearsal
from benchmarks.gpu.report import report
from benchmarks.gpu.runner import Runner
from benchmarks.gpu.schema import GpuResult, Mode
from benchmarks.gpu.store import RefusedError, place, resumed, started, write
from prw.kernels import VARIABLE

BUDGET_S: dict[Mode, float] = {"full": 480, "quick": 60, "rehearsal": 120}
STARTED, RESTARTS = "PRW_GPU_BENCHMARK_STARTED", "PRW_GPU_BENCHMARK_RESTARTS"
MOST_RESTARTS = 3
NO_NUMBERS, USAGE, LOST = 1, 2, 3
"""Exit codes: no kernel was right; the command cannot run here; the device was lost again and again."""


def parser() -> argparse.ArgumentParser:
    """Describe the command."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    made.add_argument("--quick", action="store_true", help="about a minute: checks and the main points")
    made.add_argument(
        "--rehearse", action="store_true", help="on the CPU, tiny: tests the command, not the code"
    )
    made.add_argument("--output", type=Path, help="the result file (default: benchmarks/results/gpu-...json)")
    made.add_argument("--budget", type=seconds, help="seconds after which no further group is started")
    made.add_argument(
        "--only", default="", help="groups whose names contain one of these, with commas between"
    )
    made.add_argument("--restart", action="store_true", help="measure again what was measured already")
    made.add_argument("--device", type=int, default=0, help="index of the CUDA device")
    made.add_argument("--list", action="store_true", help="list the groups, most important first, and end")
    return made


def seconds(text: str) -> float:
    """Read a positive number of seconds."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"wanted a positive number of seconds, got {text}")
    return value


def mode_of(asked: argparse.Namespace) -> Mode:
    """Give what the flags ask for.

    Raises:
        RefusedError: if they contradict each other, or a kernel is forced behind their back.
    """
    if os.environ.get(VARIABLE, "").strip():
        raise RefusedError(
            f"{VARIABLE} is set, so every pool would be measured with one kernel, under the names of others. "
            "Unset it."
        )
    if asked.quick and asked.rehearse:
        raise RefusedError("--quick measures on a GPU and --rehearse does not; give one of them.")
    return "rehearsal" if asked.rehearse else "quick" if asked.quick else "full"


def device_of(asked: argparse.Namespace) -> Device:
    """Take the device.

    Raises:
        RefusedError: if there is none.
    """
    if asked.rehearse:
        return Rehearsal()
    if not torch.cuda.is_available():
        raise RefusedError(
            f"this benchmark needs a CUDA device, and torch {torch.__version__} sees none. Install a CUDA "
            "build of torch and look at `nvidia-smi`; `make bench` measures on a CPU, and --rehearse tries "
            "this command there."
        )
    if not 0 <= asked.device < torch.cuda.device_count():
        raise RefusedError(
            f"--device is {asked.device}, but there are {torch.cuda.device_count()} CUDA devices."
        )
    return Cuda(asked.device)


def only_of(asked: argparse.Namespace, mode: Mode) -> list[str]:
    """Read --only.

    Raises:
        RefusedError: if a part fits no group.
    """
    parts = [part.strip() for part in asked.only.split(",") if part.strip()]
    names = [task.name for task in tasks(mode)]
    for part in parts:
        if not any(part in name for name in names):
            raise RefusedError(f"--only {part} fits no group; there are: {', '.join(names)}.")
    return parts


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def measure(asked: argparse.Namespace, mode: Mode, begun: float) -> GpuResult:
    """Go on with the result file, or start it; the budget counts from `begun`."""
    only, device = only_of(asked, mode), device_of(asked)
    torch.set_float32_matmul_precision("highest")
    fresh = started(device, mode)
    path = asked.output or place(fresh)
    found = None if asked.restart and RESTARTS not in os.environ else resumed(fresh, path)
    result = found or fresh
    if found is None and path.exists() and not asked.restart:
        raise RefusedError(
            f"{path} is there, of other code, another device or other versions. Give another --output, or "
            "--restart to replace it."
        )
    write(result, path)
    say(f"{device.name}; {path}; {len(result.groups)} groups are there already")
    deadline = begun + (asked.budget or BUDGET_S[mode])
    return Runner(device, result, path, deadline, say, only).run()


def again(arguments: Sequence[str], begun: float) -> int:
    """Start this command anew in the place of this process, whose device is lost; it goes on from here."""
    restarts = int(os.environ.get(RESTARTS, "0")) + 1
    if restarts > MOST_RESTARTS:
        say("the device was lost again and again; what was measured before is in the file")
        return LOST
    os.environ |= {RESTARTS: str(restarts), STARTED: str(begun)}
    say("the device was lost; a new process goes on without the kernel that ran last")
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    os.execv(sys.executable, command)
    return LOST  # where a test has taken execv's place


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: As from a command line.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    asked, begun = parser().parse_args(given), float(os.environ.get(STARTED, time.time()))
    try:
        mode = mode_of(asked)
        if asked.list:
            for task in tasks(mode):
                say(task.name)
            return 0
        result = measure(asked, mode, begun)
    except RefusedError as error:
        sys.stderr.write(f"error: {error}\n")
        return USAGE
    except DeviceLostError:
        return again(given, begun)
    for line in report(result):
        say(line)
    checks = result.checks()
    return 0 if any(may_be_timed(check.kernel, checks) for check in checks) else NO_NUMBERS


if __name__ == "__main__":
    sys.exit(main())

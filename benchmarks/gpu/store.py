"""The result file: written whole after every group, read again by a run that goes on."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.gpu.device import REHEARSAL, Device
from benchmarks.gpu.schema import GpuResult, Group, Mode, read
from benchmarks.origin import ROOT, cores, cpu_name, digest_of_code, git, memory_gb
from benchmarks.schema import Machine, Origin

RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "triton", "peft", "transformers", "diffusers", "numpy", "prw")


class RefusedError(Exception):
    """The command cannot do what it was asked; the message says what to do."""


def versions() -> dict[str, str]:
    """Give the versions of what is installed; the library itself may be run from a clone."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def origin_of(device: Device) -> Origin:
    """Say what runs and where.

    Raises:
        RefusedError: if this is no clone that git can read.
    """
    try:
        commit = git("rev-parse", "HEAD")
        changed = bool(git("status", "--porcelain", "--untracked-files=no", "--", "prw", "benchmarks/*.py"))
    except (OSError, subprocess.CalledProcessError) as error:
        raise RefusedError(
            f"a result names the commit that was measured, but git cannot read {ROOT} ({error}). Run this "
            f"in a clone; if git speaks of ownership, `git config --global --add safe.directory {ROOT}`."
        ) from error
    return Origin(
        commit=commit,
        changed=changed,
        code=digest_of_code(),
        date=datetime.now(UTC).replace(microsecond=0),
        versions=versions(),
        machine=Machine(
            cpu=cpu_name(),
            cores=cores(),
            threads=torch.get_num_threads(),
            device=device.name,
            system=f"{platform.system()} {platform.release()}",
            memory_gb=memory_gb(),
        ),
        seed=0,
    )


def harness() -> str:
    """Digest of this benchmark's own modules."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parent.glob("*.py")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def started(device: Device, mode: Mode) -> GpuResult:
    """Start an empty result."""
    return GpuResult(
        device=device.name,
        facts=device.facts(),
        mode=mode,
        origin=origin_of(device),
        harness=harness(),
        finished=False,
    )


def place(result: GpuResult) -> Path:
    """Give the path of a result that was not told where to go; git ignores that of what stays here."""
    device = re.sub(r"[^a-z0-9]+", "-", result.device.lower()).strip("-")
    ending = "" if result.mode == "full" else f"-{result.mode}"
    name = f"gpu-{device}-{result.origin.commit[:9]}{ending}.json"
    return (RESULTS if result.mode == "full" else RESULTS / "local") / name


def write(result: GpuResult, path: Path) -> None:
    """Write a result in one step, so that no half of one is ever there.

    Raises:
        RefusedError: if a rehearsal would land among the committed results.
    """
    if result.device == REHEARSAL and path.resolve().parent == RESULTS.resolve():
        raise RefusedError(
            f"a rehearsal means nothing and does not belong into {RESULTS}; give another --output."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    half.replace(path)


def resumed(fresh: GpuResult, path: Path) -> GpuResult | None:
    """Read what an earlier run of the same code on the same device has left; None if nothing is like it."""
    if not path.exists():
        return None
    try:
        found = read(path)
    except ValueError:
        return None
    if same_run(found, fresh):
        return found
    return None


def same_run(one: GpuResult, other: GpuResult) -> bool:
    """Tell whether two results can be one: same code, device, mode and versions."""
    return all(
        getattr(one, name) == getattr(other, name) for name in ("device", "facts", "mode", "harness")
    ) and all(
        getattr(one.origin, name) == getattr(other.origin, name)
        for name in ("commit", "changed", "code", "versions", "machine")
    )


def with_group(result: GpuResult, group: Group, order: Sequence[str]) -> GpuResult:
    """Add a group, in the order of the list."""
    groups = [old for old in result.groups if old.name != group.name] + [group]
    groups.sort(key=lambda one: order.index(one.name) if one.name in order else len(order))
    return result.model_copy(update={"groups": tuple(groups)})


def with_left(result: GpuResult, order: Sequence[str]) -> GpuResult:
    """Say which groups are missing, and whether none is."""
    left = tuple(name for name in order if result.group(name) is None)
    return result.model_copy(update={"left": left, "finished": not left})

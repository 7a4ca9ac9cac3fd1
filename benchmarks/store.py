"""Where results lie: one folder per device, one file per group; and what a result says of its origin."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.schema import REHEARSAL, Kind, Machine, Origin, Result, SetName
from benchmarks.timing import Device
from prw.storage.atomic import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CPU, LOCAL = RESULTS / "cpu", RESULTS / "local"
PACKAGES = ("torch", "triton", "peft", "transformers", "diffusers", "numpy", "prw")
WITH_RECIPE: tuple[Kind, ...] = ("generation", "input")
"""Kinds whose numbers depend on the recipe's code too."""
WRITERS = ("page", "plots", "report", "console", "conftest")
"""Modules of the benchmarks that no number depends on."""


class RefusedError(Exception):
    """The command cannot do what it was asked; the message says what to do."""


def git(*arguments: str) -> str:
    """Ask git about the repository.

    Raises:
        RefusedError: if it cannot be read.
    """
    try:
        ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RefusedError(
            f"a result names the commit that was measured, but git cannot read {ROOT} ({error}). Run this in "
            f"a clone; if git complains about ownership, `git config --global --add safe.directory {ROOT}`."
        ) from error
    return ran.stdout.strip()


@cache
def digest(recipe: bool) -> str:
    """Digest every module of prw and of the benchmarks, by name and content, and the recipe's if asked."""
    found = hashlib.sha256()
    for folder in ("prw", "benchmarks", *(["recipes"] if recipe else [])):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if folder != "benchmarks" or path.stem not in WRITERS:
                found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:16]


def cpu_name() -> str:
    """Name the processor, with its family and model where Linux knows them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    known = [fields[key] for key in ("model name", "cpu family", "model") if key in fields]
    return f"{known[0]} (family {known[1]}, model {known[2]})" if len(known) == 3 else platform.machine()


def installed(name: str) -> str:
    """Give the version of a package; prw itself may run from a clone."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def origin(device: Device, kind: Kind = "grid") -> Origin:
    """Describe what runs, and where: what a result needs to be believed, and to be repeated.

    Raises:
        RefusedError: outside a clone.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    machine = Machine(
        cpu=cpu_name(),
        cores=cores,
        threads=torch.get_num_threads(),
        device=device.name,
        facts=device.facts(),
        system=f"{platform.system()} {platform.release()}",
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    )
    measured = ("prw", "recipes/**/*.py", "benchmarks/*.py")
    return Origin(
        commit=git("rev-parse", "HEAD"),
        changed=bool(git("status", "--porcelain", "--untracked-files=no", "--", *measured)),
        code=digest(kind in WITH_RECIPE),
        date=datetime.now(UTC).replace(microsecond=0),
        versions={"python": platform.python_version()} | {name: installed(name) for name in PACKAGES},
        machine=machine,
        seed=0,
    )


def read(path: Path) -> Result:
    """Read a result, strictly."""
    return Result.model_validate_json(path.read_text(encoding="utf-8"))


def read_all(folder: Path) -> list[Result]:
    """Read every result of a folder."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def write(result: Result, folder: Path) -> Path:
    """Write a result under its name, in one step, so that no half of one is ever there.

    Raises:
        RefusedError: if a rehearsal would land beside the committed results.
    """
    if result.origin.machine.device == REHEARSAL and folder.resolve().parent == RESULTS.resolve():
        raise RefusedError(
            f"a rehearsal means nothing and does not belong in {folder}; give another --output."
        )
    path = folder / f"{result.name}.json"
    said = result.model_dump(mode="json", exclude_none=True)
    said = {name: value for name, value in said.items() if value not in ([], {})}
    write_text(path, json.dumps(said, indent=1, ensure_ascii=False) + "\n")
    return path


def done(folder: Path, name: str, now: Origin, chosen: SetName) -> Result | None:
    """Find the result of a group that this very code left here before: same set, machine and versions."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    try:
        found = read(path)
    except ValueError:
        return None
    was = found.origin
    same = (was.code, was.machine, was.versions, found.set) == (now.code, now.machine, now.versions, chosen)
    return found if same else None


def gpu_folder(now: Origin, chosen: SetName) -> Path:
    """Name the folder of a GPU's results; git ignores that of a rehearsal."""
    device = re.sub(r"[^a-z0-9]+", "-", now.machine.device.lower()).strip("-")
    return RESULTS / f"gpu-{device}-{now.commit[:9]}" if chosen == "full" else LOCAL / device


def committed_gpus(names: Sequence[str], folder: Path = RESULTS) -> list[list[Result]]:
    """Read every GPU's results that are to be published; `names` are the groups of a full run.

    Raises:
        ValueError: if one is a rehearsal, an unfinished run, or of files that differ from its commit.
    """
    gpus = []
    for path in sorted(one for one in folder.glob("gpu-*") if one.is_dir()):
        found = read_all(path)
        missing = set(names) - {result.name for result in found if result.set == "full"}
        if any(one.set == "rehearsal" or one.origin.machine.device == REHEARSAL for one in found):
            raise ValueError(f"{path.name} is a rehearsal on a CPU, and its numbers mean nothing; remove it")
        if missing:
            raise ValueError(f"{path.name} is not a whole run: {', '.join(sorted(missing))} are missing")
        if any(one.origin.changed for one in found):
            raise ValueError(f"{path.name} was measured on files that differ from its commit")
        if len({(one.origin.commit, one.origin.machine.device) for one in found}) != 1:
            raise ValueError(f"{path.name} mixes commits or devices")
        gpus.append(found)
    return gpus

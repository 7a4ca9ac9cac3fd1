"""Says what ran and where: commit, digest of the code, versions, machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.schema import Machine, Origin

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "peft", "transformers", "diffusers", "numpy", "prw")


def git(*arguments: str) -> str:
    ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return ran.stdout.strip()


@cache
def digest_of_code() -> str:
    """Digest of every module of prw and of the benchmarks, by name and content, without report and input."""
    found = hashlib.sha256()
    for path in sorted([*(ROOT / "prw").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(("benchmarks/report", "benchmarks/gpu", "benchmarks/input")):
            found.update(name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def cpu_name() -> str:
    """Name of the processor, with its family and model where Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    known = [fields[key] for key in ("model name", "cpu family", "model") if key in fields]
    return f"{known[0]} (family {known[1]}, model {known[2]})" if len(known) == 3 else platform.machine()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def origin(seed: int = 0, device: str = "cpu") -> Origin:
    """Describe this process: what a result needs to be believed, and rerun."""
    return Origin(
        commit=git("rev-parse", "HEAD"),
        changed=bool(git("status", "--porcelain", "--untracked-files=no", "--", "prw", "benchmarks/*.py")),
        code=digest_of_code(),
        date=datetime.now(UTC).replace(microsecond=0),
        versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        machine=Machine(
            cpu=cpu_name(),
            cores=cores(),
            threads=torch.get_num_threads(),
            device=device,
            system=f"{platform.system()} {platform.release()}",
            memory_gb=memory_gb(),
        ),
        seed=seed,
    )

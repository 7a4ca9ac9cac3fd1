"""What a run would work with: versions of packages, devices, memory and room on the disk."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "torchao")


def environment(output: Path, processes: int) -> dict[str, Any]:
    """Facts of this machine, and of the disk that the run's folder is or would be on."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "gpu_bytes": gpu_bytes(),
        "host_bytes": host_bytes(),
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "processes": processes,
        "output": str(output),
        "free_disk_bytes": free_disk(output),
    }


def gpu_bytes() -> int | None:
    """Memory of this machine's first GPU; None where it has none."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def host_bytes() -> int:
    """Memory of this machine itself."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_disk(folder: Path) -> int:
    """Bytes left on the disk that a folder is or would be on."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

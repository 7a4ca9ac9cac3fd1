"""Starts the training command on two ranks, as users do: `accelerate launch` with a file that we ship."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import recipes.cologen

FILES = Path(recipes.cologen.__file__).parent / "accelerate"

needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed, so ZeRO-2 was NOT tested: extra `deepspeed`",
)
ZERO2 = pytest.param("deepspeed_zero2", marks=needs_deepspeed)


def environment() -> dict[str, str]:
    """Of processes that must not look for a GPU."""
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def launch(
    how: str,
    *arguments: object,
    module: str = "recipes.cologen.train",
    env: dict[str, str] | None = None,
    processes: int = 2,
) -> subprocess.CompletedProcess[str]:
    """Run a command under one of the files that we ship, on two ranks unless said otherwise."""
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(FILES / f"{how}.yaml"),
    ]
    return subprocess.run(
        [*launcher, "--num_processes", str(processes), "-m", module, *map(str, arguments)],
        env={**environment(), **(env or {})},
        capture_output=True,
        text=True,
        timeout=900,
    )

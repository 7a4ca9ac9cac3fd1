"""What routed experts on K and V cost over the grid, beside the plain projections and PEFT's LoRA."""

from pathlib import Path
from typing import Any

from benchmarks.group_run import run_group
from benchmarks.groups import Group, SetName

KIND = "grid"


def bench_grid(benchmark: Any, group: Group, results: Path, chosen: SetName) -> None:
    run_group(benchmark, group, results, chosen)

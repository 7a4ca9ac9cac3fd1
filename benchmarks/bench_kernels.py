"""What each kernel costs by name: the measure of the thresholds between them."""

from pathlib import Path
from typing import Any

from benchmarks.group_run import run_group
from benchmarks.groups import Group, SetName

KIND = "kernels"


def bench_kernels(benchmark: Any, group: Group, results: Path, chosen: SetName) -> None:
    run_group(benchmark, group, results, chosen)

"""What uneven routing costs: nine tenths, or everything, to the newest expert."""

from pathlib import Path
from typing import Any

from benchmarks.group_run import run_group
from benchmarks.groups import Group, SetName

KIND = "skew"


def bench_skew(benchmark: Any, group: Group, results: Path, chosen: SetName) -> None:
    run_group(benchmark, group, results, chosen)

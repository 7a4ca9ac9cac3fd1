"""The page's part on GPUs: how to measure on one, a model, and the targets beside committed results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.schema import GpuResult, read_committed
from benchmarks.gpu.store import RESULTS
from benchmarks.gpu.targets import verdicts
from benchmarks.gpu_model import GPU_TARGETS
from benchmarks.report.tables import table

HEAD = """
## On a GPU

`python -m benchmarks.gpu` on a machine with a CUDA device is the whole measurement, made for under ten
minutes: it checks every kernel against the reference, times those that are right, and writes one file with
ratios, measured ceilings and the limit of every case (`benchmarks/README.md`, section "On a GPU").

The plot is a model and not a measurement. It takes each kernel's operations and bytes at T = 4096,
d = 3072 in bfloat16 and the larger of the two times that 798 TFLOP/s and 3.0 TB/s allow; a routed shrink
or expand is taken at 70 % of that (`benchmarks/gpu_model.py`). It knows no launch gaps, waves or caches.

![Model of an H100](assets/benchmarks-gpu-model.png)

Targets for one H100: bfloat16, cold cache, replayed graphs, T = 4096, even routing.
"""
NONE_YET = "not yet measured on a GPU"
WORDS = {True: "met", False: "**not met**", None: ""}


def committed(folder: Path = RESULTS) -> list[GpuResult]:
    """Read every committed result of a GPU."""
    return [read_committed(path) for path in sorted(folder.glob("gpu-*.json"))]


def body(results: Sequence[GpuResult]) -> str:
    """Write the targets, and for each device what was measured; the worst point of each target counts."""
    head = ["against", "must", "good", "physical floor"]
    columns = [[NONE_YET] * len(GPU_TARGETS)]
    if results:
        columns = [
            [f"{verdict.measured} {WORDS[verdict.met]}".strip() for verdict in verdicts(result)]
            for result in results
        ]
    head += [f"{result.device}, {result.origin.commit[:9]}" for result in results] or ["measured"]
    rows = ((*target, *measured) for target, *measured in zip(GPU_TARGETS, *columns, strict=True))
    said = "" if results else "None of them has been measured yet.\n"
    return f"{said}\n{table(head, rows)}"

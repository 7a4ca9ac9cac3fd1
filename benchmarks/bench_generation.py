"""What a source picture costs when drawing: CoLoGen cached and uncached, beside text alone and Kontext."""

import gc
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.flux_steps import Geometry
from benchmarks.generation import KONTEXT, PLAIN_TEXT, Drawer, Scene, drawers, weight_bytes
from benchmarks.group_run import SKIPPED, done
from benchmarks.groups import SetName
from benchmarks.measuring import Case, interleaved, paired, rounds_for, spread, tidy
from benchmarks.memory import MIB, peak_bytes
from benchmarks.origin import origin
from benchmarks.schema import Drawn, Result, write

SCENES: dict[SetName, Scene] = {
    "smoke": Scene(Geometry(heads=2, head=32, double=1, single=1, side=3, text=5, rank=4), steps=2),
    "default": Scene(Geometry(heads=4, side=16, text=32, rank=24)),
    "full": Scene(Geometry(side=32, text=128, rank=48)),
}
"""A rank of 48 to a width of 1024, and 24 to 512, is a little more than FLUX.1's 128 to 3072."""
BUDGET_S: dict[SetName, float] = {"smoke": 0, "default": 60, "full": 240}
MEMORY_STEPS = 2
"""Steps of the run whose memory is counted: a third would take no more."""


def rows(scene: Scene, found: dict[str, Drawer], seconds: dict[str, list[float]]) -> list[Drawn]:
    """Turn seconds into rows, and count memory."""
    made = []
    for name, values in seconds.items():
        of_time, of_ratio = spread(values), paired(values, seconds[PLAIN_TEXT])
        drawer = found[name]
        made.append(
            Drawn(
                case=name,
                steps=scene.steps,
                text=scene.geometry.text,
                noise=scene.tokens,
                source=0 if name == PLAIN_TEXT else scene.tokens,
                experts=drawer.experts,
                median_ms=tidy(1e3 * of_time.median),
                iqr_ms=tidy(1e3 * of_time.iqr),
                ratio=of_ratio.median,
                ratio_iqr=of_ratio.iqr,
                kontext_ratio=paired(seconds[KONTEXT], values).median,
                weights_mib=tidy(weight_bytes(drawer.model) / MIB),
                peak_mib=tidy(peak_bytes(partial(drawer.draw, MEMORY_STEPS)) / MIB),
            )
        )
    return made


def bench_generation(benchmark: Any, results: Path, chosen: SetName) -> None:
    scene = SCENES[chosen]
    name = f"generation-d{scene.geometry.width}-t{scene.tokens}"
    if not benchmark.disabled and done(results, name, chosen):
        pytest.skip(SKIPPED)
    found = drawers(scene.geometry)
    cases = {key: Case(partial(drawer.draw, scene.steps)) for key, drawer in found.items()}
    rounds = 1 if benchmark.disabled else rounds_for(cases, BUDGET_S[chosen])
    gc.collect()
    seconds = interleaved(benchmark, cases, rounds)
    if seconds:
        result = Result(
            kind="generation",
            name=name,
            set=chosen,
            origin=origin(),
            rounds=rounds,
            model=scene.geometry.said(),
            drawn=rows(scene, found, seconds),
        )
        write(result, results)

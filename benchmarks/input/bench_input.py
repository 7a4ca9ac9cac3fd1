"""Images a second from a draw to tokens, and the share of a tiny training step outside the model."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.groups import SetName
from benchmarks.input.pictures import FRAMED, QUALITY, STORED
from benchmarks.input.pipelines import EXTENTS, Way, cases
from benchmarks.input.schema import InputResult, Pipeline, StepShare, write
from benchmarks.input.steps import WARM_UP, measure
from benchmarks.measuring import interleaved, spread
from benchmarks.origin import ROOT, origin
from recipes.cologen.stages import COLOGEN_STAGES

ROUNDS = 5
STEPS = {"smoke": WARM_UP + 6, "default": WARM_UP + 9, "full": WARM_UP + 17}
PLACES = {"default": "local/input.json", "full": "input/input.json"}


def bench_input(benchmark: Any, chosen: SetName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    # The loader warns where workers outnumber cores; that is what is measured here.
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(8))
    extent, before = EXTENTS[chosen], os.getloadavg()[0]
    ways = dict(cases(tmp_path, extent))
    seconds = interleaved(benchmark, {str(tuple(way)): case for way, case in ways.items()}, ROUNDS)
    monkeypatch.undo()
    stages = list(COLOGEN_STAGES)[: 1 if chosen == "smoke" else None]
    workers, batch = (0, 4) if chosen == "smoke" else (2, 64)
    shares = [measure(tmp_path / stage, stage, workers, STEPS[chosen], batch) for stage in stages]
    if not seconds:
        return
    images = extent.batch * extent.batches
    pipelines = [_pipeline(way, images, seconds[str(tuple(way))]) for way in ways]
    _write(chosen, pipelines, shares, (before, os.getloadavg()[0]))


def _pipeline(way: Way, images: int, seconds: list[float]) -> Pipeline:
    speed = spread([images / one for one in seconds])
    return Pipeline(
        source=way.source, workers=way.workers, cache=way.cache, images_per_second=speed.median, iqr=speed.iqr
    )


def _write(
    chosen: SetName, pipelines: list[Pipeline], shares: list[StepShare], load: tuple[float, float]
) -> None:
    extent = EXTENTS[chosen]
    result = InputResult(
        set=chosen,
        origin=origin().model_copy(update={"code": digest()}),
        load=load,
        rounds=ROUNDS,
        pictures={
            "stored": f"{STORED[0]}x{STORED[1]} JPEG, quality {QUALITY}",
            "trained": f"{FRAMED[0]}x{FRAMED[1]}",
            "number": extent.pictures,
            "batch": extent.batch,
        },
        pipelines=pipelines,
        steps=shares,
    )
    write(result, ROOT / "benchmarks" / "results" / PLACES[chosen])


def digest() -> str:
    """Digest of every module that ran: the library, the recipe, this benchmark."""
    found = hashlib.sha256()
    for room in ("prw", "recipes", "benchmarks/input"):
        for path in sorted((ROOT / room).rglob("*.py")):
            found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:16]

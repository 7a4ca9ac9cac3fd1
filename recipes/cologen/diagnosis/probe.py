"""Measures how long steps take here: a short run of every stage by the training code itself, thrown away."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from recipes.cologen.config.data import CacheSettings
from recipes.cologen.config.run import RunConfig
from recipes.cologen.runs.files import METRICS
from recipes.cologen.training.run import train

WARM, TIMED = 1, 3
"""Steps before the clock, and steps that are timed."""


class Probe(NamedTuple):
    """What was measured."""

    seconds: dict[str, float]
    """Of one micro-batch, data and optimiser included, for every stage."""
    peak_bytes: int | None
    """The most that was allocated on the GPU; None without one."""


def probe(config: RunConfig, stages: Sequence[str], micro_batch: int, near: Path) -> Probe:
    """Train every stage up to the last of these for a few steps of one micro-batch.

    Args:
        config: Of the run; it is neither validated nor reported.
        stages: Those that are asked about.
        micro_batch: Examples a step.
        near: Folder of the run; what is written goes beside it for a while, as the checkpoints are large.

    Raises:
        CologenError: Whatever training would refuse.
    """
    last = config.stage_names.index(stages[-1])
    short = {
        name: config.stages[name].model_copy(update={"steps": WARM + TIMED, "batch_size": micro_batch})
        for name in config.stage_names[: last + 1]
    }
    data = config.data
    # A probe's batch is one micro-batch, in which no group fits that spans several; and what a throw-away run
    # encodes would only be in the way of the cache's other readers.
    alone = {"buckets": data.buckets.model_copy(update={"group": None}), "cache": CacheSettings()}
    changes = {
        "stages": short,
        "data": data.model_copy(update=alone),
        "machine": config.machine.model_copy(update={"micro_batch": None}),
        "logging": config.logging.model_copy(update={"every": 1, "trackers": ()}),
        "validation": config.validation.model_copy(update={"samples": 0}),
    }
    there = near.absolute().parent
    while not there.exists():
        there = there.parent
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=there) as place:
        run = Path(place) / "run"
        train(config.model_copy(update=changes), run, "all", Console(file=io.StringIO()))
        seconds = _seconds(run / METRICS)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return Probe({name: seconds[name] for name in stages}, peak)


def _seconds(metrics: Path) -> dict[str, float]:
    """Seconds of a step of each stage, from what the run wrote of its steps."""
    clock: dict[str, dict[int, float]] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] == "train":
            clock.setdefault(row["stage"], {})[row["step"]] = row["seconds"]
    return {name: (at[WARM + TIMED] - at[WARM]) / TIMED for name, at in clock.items()}

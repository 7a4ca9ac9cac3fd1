"""What a step of the tiny preset spends outside the model, taken from the training command itself."""

from __future__ import annotations

import io
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

from benchmarks.input.schema import StepShare
from benchmarks.measuring import tidy
from recipes.cologen.caching import encoder
from recipes.cologen.config.run import RunConfig, load_config
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.training import loop, step
from recipes.cologen.training.run import train

PREPARING = (
    (FluxModel, "tokenize"),
    (encoder, "to_unit_range"),
    (step, "sample_noise"),
    (step, "sample_timesteps"),
    (step, "interpolate"),
)
"""What prepares the model's input within a step."""
WARM_UP = 4


class StepClock:
    """Adds up, step by step, the seconds spent in named functions, and waiting for batches."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._now: dict[str, float] = defaultdict(float)
        self._start = time.perf_counter()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self._now[name] += time.perf_counter() - start

        return wrapped

    def waited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The loop's stream of batches, its waits timed; a step ends when the next batch is asked for."""

        def wrapped(*arguments: Any) -> Any:
            stream, micro_batches = function(*arguments)

            def watched() -> Iterator[Any]:
                while True:
                    self._end_step()
                    start = time.perf_counter()
                    batch = next(stream)
                    self._now["waiting"] += time.perf_counter() - start
                    yield batch

            return watched(), micro_batches

        return wrapped

    def _end_step(self) -> None:
        end = time.perf_counter()
        self.rows.append({**self._now, "all": end - self._start})
        self._now, self._start = defaultdict(float), end


def tiny(stage: str, workers: int, steps: int, batch_size: int) -> RunConfig:
    """The tiny preset with one short stage, which has no veterans."""
    row = f"{{steps: {steps}, batch_size: {batch_size}, lr: 1.0e-2, rho: 1.0, alpha: 0.0, init: zero}}"
    quiet = ["validation.samples=0", f"logging.checkpoint_every={10 * steps}"]
    return load_config("tiny", [f"stages={{{stage}: {row}}}", f"machine.workers={workers}", *quiet])


def measure(folder: Path, stage: str, workers: int, steps: int, batch_size: int = 64) -> StepShare:
    """Train a stage of the tiny preset by the real loop, and say where its steps' time went."""
    clock = StepClock()
    with ExitStack() as patched:
        for place, name in PREPARING:
            patched.enter_context(patch.object(place, name, clock.timed("preparing", getattr(place, name))))
        patched.enter_context(patch.object(loop, "train_step", clock.timed("step", loop.train_step)))
        patched.enter_context(patch.object(loop, "_stream", clock.waited(loop._stream)))
        train(tiny(stage, workers, steps, batch_size), folder, "all", Console(file=io.StringIO()))
    # The first row ends where the first batch is asked for; the last step ends with the run, not with a wait.
    return share_of(stage, workers, clock.rows[1 + WARM_UP :])


def share_of(stage: str, workers: int, rows: list[dict[str, float]]) -> StepShare:
    """Medians over steps."""
    rest = [row["all"] - row["step"] - row["waiting"] for row in rows]
    outside = [(row["all"] - row["step"] + row["preparing"]) / row["all"] for row in rows]

    def middle(values: list[float], scale: float = 1e3) -> float:
        return tidy(scale * statistics.median(values))

    return StepShare(
        stage=stage,
        workers=workers,
        steps=len(rows),
        step_ms=middle([row["all"] for row in rows]),
        waiting_ms=middle([row["waiting"] for row in rows]),
        preparing_ms=middle([row["preparing"] for row in rows]),
        rest_ms=middle(rest),
        outside=middle(outside, 1.0),
    )

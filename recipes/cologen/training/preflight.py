"""Cheap checks before anything heavy: what of a run cannot work, and the setting to change.

`train` refuses with them before it loads a base; `doctor` lists them beside its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recipes.cologen.config.data import DataSettings
from recipes.cologen.config.run import RunConfig
from recipes.cologen.costs.shapes import pixels_per_token
from recipes.cologen.data.bucket_order import BucketOrder
from recipes.cologen.data.buckets import buckets_of
from recipes.cologen.data.sampler import BatchSampler, BatchSizeError
from recipes.cologen.errors import CologenError


class PreflightError(CologenError, ValueError):
    """A run cannot work as its settings are."""


class Problem(NamedTuple):
    """One thing that keeps a run from working."""

    about: str
    """What it is about, in a word or two."""
    message: str
    """What is wrong, and what to change."""


def cheap_problems(config: RunConfig, stages: Sequence[str], base: Path, processes: int) -> list[Problem]:
    """What of these stages cannot work, told by arithmetic and the base's configs.

    Args:
        config: Of the run.
        stages: Those that are to be trained.
        base: Folder of the base; a part of it that cannot be read is found when it is loaded.
        processes: How many share a batch.
    """
    side = pixels_per_token(base)
    batches = [_dealing(config, name, processes) for name in stages]
    sizes = [] if side is None else [_size(config.data, side), _bucket_sizes(config.data, side)]
    return [problem for problem in (*batches, *sizes) if problem is not None]


def _dealing(config: RunConfig, stage: str, processes: int) -> Problem | None:
    """Whether a stage's batch can be dealt to processes and micro-batches, in whole groups of one bucket."""
    batch_size, buckets = config.stages[stage].batch_size, config.data.buckets
    # Which records a bucket has does not matter here, only how many examples in a row share one.
    order = BucketOrder([np.arange(1)], buckets.group or batch_size, seed=0) if buckets.on else None
    try:
        BatchSampler(
            None,
            batch_size=batch_size,
            micro_batch=config.machine.micro_batch,
            seed=0,
            world_size=processes,
            order=order,
        )
    except BatchSizeError as error:
        return Problem("batch", f"stage {stage!r}: {error}.")
    return None


def _size(data: DataSettings, side: int) -> Problem | None:
    if data.size is None or not _unfit([data.size], side):
        return None
    return Problem(
        "picture size",
        f"data.size is {list(data.size)}, but this base reads sides that are multiples of {side}: "
        f"--set data.size={_written(_fitting(data.size, side))}.",
    )


def _bucket_sizes(data: DataSettings, side: int) -> Problem | None:
    """Sides of buckets; how large they may be is not limited, as positions are not."""
    buckets = buckets_of(data.buckets)
    unfit = [] if buckets is None else _unfit(buckets.sizes, side)
    if buckets is None or not unfit:
        return None
    if data.buckets.resolution is not None:
        change = f"data.buckets.step={_fitting((data.buckets.step,), side)[0]}"
    else:
        fitting = dict.fromkeys(_fitting(size, side) for size in buckets.sizes)
        change = f"data.buckets.sizes=[{','.join(map(_written, fitting))}]"
    return Problem(
        "picture size",
        f"data.buckets has the sizes {', '.join(str(list(size)) for size in unfit)}, but this base reads "
        f"sides that are multiples of {side}: --set {change}.",
    )


def _unfit(sizes: Sequence[tuple[int, int]], side: int) -> list[tuple[int, int]]:
    return [size for size in sizes if any(length % side for length in size)]


def _fitting(lengths: tuple[int, ...], side: int) -> tuple[int, ...]:
    """The nearest lengths that the base reads."""
    return tuple(max(side, round(length / side) * side) for length in lengths)


def _written(lengths: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, lengths))}]"


def refuse_what_cannot_work(config: RunConfig, stages: Sequence[str], base: Path, processes: int) -> None:
    """Refuse a run of these stages before anything is loaded; arguments as of `cheap_problems`.

    Raises:
        PreflightError: Lists all that is wrong.
    """
    found = cheap_problems(config, stages, base, processes)
    if found:
        lines = "\n".join(f"  {problem.about}: {problem.message}" for problem in found)
        raise PreflightError(f"the run cannot work as its settings are:\n{lines}")


class Unchecked(NamedTuple):
    """One check that was not made."""

    about: str
    """What it is about, in a word or two."""
    why: str
    """What was not looked at, and why."""
    how: str
    """How to have it checked."""

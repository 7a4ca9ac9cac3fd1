"""Cheap checks before anything heavy: what of a run cannot work, and the setting to change.

`train` refuses with them before it loads a base; `doctor` lists them beside its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from recipes.cologen.config import RunConfig
from recipes.cologen.costs.shapes import pixels_per_token
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
    found = []
    for name in stages:
        try:
            BatchSampler(
                None,
                batch_size=config.stages[name].batch_size,
                micro_batch=config.machine.micro_batch,
                seed=0,
                world_size=processes,
            )
        except BatchSizeError as error:
            found.append(Problem("batch", f"stage {name!r}: {error}."))
    side, size = pixels_per_token(base), config.data.size
    if side is not None and size is not None and any(length % side for length in size):
        fitting = ",".join(str(max(side, round(length / side) * side)) for length in size)
        found.append(
            Problem(
                "picture size",
                f"data.size is {list(size)}, but this base reads sides that are multiples of {side}: "
                f"--set data.size=[{fitting}].",
            )
        )
    return found


def refuse_what_cannot_work(config: RunConfig, stages: Sequence[str], base: Path, processes: int) -> None:
    """Refuse a run of these stages before anything is loaded; arguments as of `cheap_problems`.

    Raises:
        PreflightError: Lists all that is wrong.
    """
    found = cheap_problems(config, stages, base, processes)
    if found:
        lines = "\n".join(f"  {problem.about}: {problem.message}" for problem in found)
        raise PreflightError(f"the run cannot work as its settings are:\n{lines}")

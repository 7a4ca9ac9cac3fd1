"""What a pool says of the stages that trained it: kept in its configuration, so every save carries it."""

from __future__ import annotations

from typing import Any

from prw.curriculum.stage import Stage
from prw.errors import CurriculumError
from prw.weave import Weave

DONE = "done"
"""Key of a stage's entry beside its settings: how many of its steps are done."""


def entry_of(weave: Weave, name: str) -> dict[str, Any] | None:
    """Read what the pool says of a stage; None if it says nothing, as of an expert added by hand."""
    entry = weave.config.stages.get(name)
    return dict(entry) if entry is not None and name in weave.experts else None


def begin(weave: Weave, stage: Stage) -> None:
    """Write a stage down as begun, or its settings anew if it goes on."""
    write(weave, stage, steps_done(weave, stage.name))


def write(weave: Weave, stage: Stage, done: int) -> None:
    """Write down a stage's settings and how many of its steps are done."""
    weave.config.stages = {**weave.config.stages, stage.name: {**settings_of(stage), DONE: done}}


def settings_of(stage: Stage) -> dict[str, Any]:
    """Give a stage's settings; both ways to say that its expert starts at zero are one."""
    settings = stage.model_dump()
    return {**settings, "init": None if settings["init"] == "zero" else settings["init"]}


def steps_done(weave: Weave, name: str) -> int:
    """Count the steps of a stage that the pool has been trained for."""
    entry = entry_of(weave, name)
    return 0 if entry is None else int(entry[DONE])


def check_past(weave: Weave, stage: Stage, running: bool) -> None:
    """Refuse other settings than those that the stage's expert was trained with.

    Args:
        weave: The pool.
        stage: The stage as the curriculum has it now.
        running: Whether the stage is not finished, so that its number of steps may still change.

    Raises:
        CurriculumError: names each setting, with both values.
    """
    entry = entry_of(weave, stage.name)
    if entry is None:
        return
    done = int(entry.pop(DONE))
    now = settings_of(stage)
    changed = [key for key in now if entry.get(key) != now[key] and not (running and key == "steps")]
    if changed:
        lines = "".join(f"\n  {key}: {entry.get(key)!r} then, {now[key]!r} now" for key in changed)
        raise CurriculumError(
            f"stage {stage.name!r} has been trained{f' for {done} steps' if running else ''} with other "
            f"settings:{lines}\nWhat a pool has learnt cannot be changed afterwards. Put the settings back, "
            "or start again from the pool as it was before this stage."
        )
    if running and done > stage.steps:
        raise CurriculumError(
            f"stage {stage.name!r} has {done} steps behind it, and the curriculum gives it {stage.steps}. "
            f"Give it at least {done}, or call weave.freeze() to end it here."
        )

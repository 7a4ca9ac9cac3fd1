"""The ledger: what a pool remembers of the stages that trained it, kept and saved in its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError

from prw.curriculum.stages import Stage, stage_from
from prw.errors import CurriculumError, fault_lines
from prw.weave import Weave


class LedgerEntry(BaseModel):
    """What a pool remembers of one stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: InstanceOf[Stage]
    """The settings that the stage was trained with."""
    done: int = Field(ge=0)
    """How many of its steps are done."""

    @classmethod
    def read(cls, weave: Weave, name: str) -> Self | None:
        """Read the entry of a stage; None if there is none, as of an expert that was added by hand.

        Raises:
            CurriculumError: if the entry is damaged.
        """
        values: Mapping[str, Any] | None = weave.config.stages.get(name)
        if values is None or name not in weave.experts:
            return None
        settings = {key: value for key, value in values.items() if key != "done"}
        try:
            return cls.model_validate(
                {"stage": stage_from(settings, "the pool's ledger"), "done": values.get("done")}
            )
        except ValidationError as error:
            raise CurriculumError(
                f"the pool's ledger of stage {name!r} is damaged: {fault_lines(error, cls)[0]}. Load the "
                "pool from another save."
            ) from error

    def write(self, weave: Weave) -> None:
        """Put the entry into the pool's configuration, in the place of an earlier one."""
        entry = {**self.stage.model_dump(), "init": start_of(self.stage), "done": self.done}
        weave.config.stages = {**weave.config.stages, self.stage.name: entry}


def start_of(stage: Stage) -> str | None:
    """Give where a stage's expert starts; both ways to say that it starts at zero are one."""
    return None if stage.init == "zero" else stage.init


def begin(weave: Weave, stage: Stage) -> None:
    """Enter a stage as begun, or its settings anew if it goes on."""
    LedgerEntry(stage=stage, done=steps_done(weave, stage.name)).write(weave)


def steps_done(weave: Weave, name: str) -> int:
    """Count the steps of a stage that the pool has been trained for."""
    entry = LedgerEntry.read(weave, name)
    return 0 if entry is None else entry.done


def check_past(weave: Weave, stage: Stage, running: bool) -> None:
    """Refuse other settings than those that the stage's expert was trained with.

    Args:
        weave: The pool.
        stage: The stage as the curriculum has it now.
        running: Whether the stage is not finished, so that its number of steps may still change.
    """
    entry = LedgerEntry.read(weave, stage.name)
    if entry is None:
        return
    then = {**entry.stage.model_dump(), "init": start_of(entry.stage)}
    now = {**stage.model_dump(), "init": start_of(stage)}
    changed = [key for key in now if then[key] != now[key] and not (running and key == "steps")]
    if changed:
        lines = "".join(f"\n  {key}: {then[key]!r} then, {now[key]!r} now" for key in changed)
        raise CurriculumError(
            f"stage {stage.name!r} has been trained{f' for {entry.done} steps' if running else ''} with "
            f"other settings:{lines}\nWhat a pool has learnt cannot be changed afterwards. Restore the "
            "settings, or start again from the pool as it was before this stage."
        )
    if running and entry.done > stage.steps:
        raise CurriculumError(
            f"stage {stage.name!r} has {entry.done} steps behind it, and the curriculum gives it "
            f"{stage.steps}. Give it at least {entry.done}, or call weave.freeze() to end it here."
        )

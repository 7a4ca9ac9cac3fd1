"""Binds a run to what its data holds, so that data sets and annotators may move before it is resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from recipes.cologen.config.run import RunConfig
from recipes.cologen.data.annotators.annotate import Annotators
from recipes.cologen.data.content import folder_content, set_content
from recipes.cologen.data.opening import DataSource
from recipes.cologen.runs.config_changes import DifferentConfigError
from recipes.cologen.stages import COLOGEN_STAGES

MAPS, PICTURES = "data.maps", "data.pictures"
_FORMS = {MAPS: "form 2", PICTURES: "form 2"}
"""In which form this version makes control maps, and reads masks and transparency; a form's number counts up
whenever the same data gives other examples. Form 1 is that of runs whose ledger does not say any."""
_CHANGED = {
    MAPS: "control maps (line art is white on black, Canny's edges are found on the colours)",
    PICTURES: "masks and transparent pictures, if the data has any (a mask is what is brighter than half of "
    "its brightest point, what is transparent is white)",
}


class Content(NamedTuple):
    """What a folder, a data set or an annotator holds, or the form in which this version reads it."""

    key: str
    """Of its settings, such as `data.sets.NAME`; or MAPS or PICTURES."""
    digest: str
    """Short hash that does not depend on where it lies."""
    tasks: frozenset[str]
    """The tasks that it serves."""


def contents(data: DataSource, annotators: Annotators) -> tuple[Content, ...]:
    """What all that is open holds; annotators as far as they were loaded."""
    control, every = frozenset({"control"}), frozenset(COLOGEN_STAGES)
    found = [Content(MAPS, _FORMS[MAPS], control)]
    if data.folder is not None or data.sets:
        found.append(Content(PICTURES, _FORMS[PICTURES], every))
    if data.folder is not None:
        found.append(Content("data.source", folder_content(data.folder), every))
    found += [
        Content(f"data.sets.{part.name}", set_content(part), frozenset(part.tasks)) for part in data.sets
    ]
    found += [
        Content(f"data.annotators.{name}", one.fingerprint(), control) for name, one in annotators.items()
    ]
    return tuple(found)


def check_contents(
    run: Path, config: RunConfig, started: Sequence[str], there: Mapping[str, str], here: Sequence[Content]
) -> None:
    """Refuse data or an annotator that is not what the stages which have begun were trained with.

    Args:
        run: The run's folder.
        config: Of the run.
        started: Stages that have begun; what only others read may have changed.
        there: Hashes in the run's ledger.
        here: What is there now.

    Raises:
        DifferentConfigError: Names what differs.
    """
    read = _read(config, started)
    differing = [one for one in here if one.tasks & read and there.get(one.key, one.digest) != one.digest]
    if differing:
        raise DifferentConfigError(
            f"{run} was trained with other contents than there are now of:\n"
            + "\n".join(f"  {one.key}: {there[one.key]} there, {one.digest} now" for one in differing)
            + "\nWhere they lie makes no difference, but what they hold does: rows, their order and texts, "
            "an annotator's weights, and the form in which this version reads them. Put back what was there, "
            "train the stages that read it anew (--restart STAGE), or give another --output."
        )


def older_forms(
    config: RunConfig, started: Sequence[str], there: Mapping[str, str], here: Sequence[Content]
) -> list[str]:
    """Warnings about forms that the ledger of a begun run does not know, so that it began with form 1.

    Args:
        config: Of the run.
        started: Stages that have begun.
        there: Hashes in the run's ledger.
        here: What is there now.
    """
    found = []
    for one in here:
        stage = next((name for name in started if one.tasks & _read(config, [name])), None)
        if one.key in _CHANGED and one.key not in there and stage is not None:
            found.append(
                f"stage {stage!r} was begun by a version that made other {_CHANGED[one.key]}; what is still "
                f"to be trained reads the new ones. To have one form throughout: --restart {stage}"
            )
    return found


def _read(config: RunConfig, stages: Sequence[str]) -> set[str]:
    """The tasks that stages read, those that they replay included."""
    return {task for name in stages for task in (name, *config.stages[name].replay)}

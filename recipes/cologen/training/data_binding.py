"""Binds a run to what its data holds, so that data sets and annotators may lie elsewhere when it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from recipes.cologen.config import RunConfig
from recipes.cologen.data.annotators.drawing import Annotators
from recipes.cologen.data.content import folder_content, set_content
from recipes.cologen.stages import COLOGEN_STAGES
from recipes.cologen.training.config_changes import DifferentConfigError
from recipes.cologen.training.sources import DataSource


class Content(NamedTuple):
    """What a folder, a data set or an annotator holds."""

    key: str
    """Of its settings, such as `data.sets.NAME`."""
    digest: str
    """Short hash that does not depend on where it lies."""
    tasks: frozenset[str]
    """The tasks that it serves."""


def contents(data: DataSource, annotators: Annotators) -> tuple[Content, ...]:
    """What all that is open holds; annotators as far as they were loaded."""
    found = []
    if data.folder is not None:
        found.append(Content("data.source", folder_content(data.folder), frozenset(COLOGEN_STAGES)))
    found += [
        Content(f"data.sets.{part.name}", set_content(part), frozenset(part.tasks)) for part in data.sets
    ]
    control = frozenset({"control"})
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
    read = {task for name in started for task in (name, *config.stages[name].replay)}
    differing = [one for one in here if one.tasks & read and there.get(one.key, one.digest) != one.digest]
    if differing:
        raise DifferentConfigError(
            f"{run} was trained with other contents than there are now of:\n"
            + "\n".join(f"  {one.key}: {there[one.key]} there, {one.digest} now" for one in differing)
            + "\nWhere they lie makes no difference, but what they hold does: rows, their order and texts, "
            "an annotator's weights. Put back what was there, train the stages that read it anew (--restart "
            "STAGE), or give another --output."
        )

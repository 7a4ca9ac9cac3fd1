"""Starts accelerate's trackers (TensorBoard, Weights & Biases, trackio ...) for a run, and feeds them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from recipes.cologen.data.record import Image
from recipes.cologen.errors import CologenError


class TrackerError(CologenError, RuntimeError):
    """A tracker was asked for that is unknown or not installed."""


class Trackers:
    """The trackers of one run.

    Args:
        names: As accelerate calls them.
        run: The run's folder; TensorBoard writes into `tensorboard/` there.
        project: What trackers that know projects call this one.
        step: Optimiser steps done so far, over all stages; TensorBoard forgets what came after.

    Raises:
        TrackerError: A tracker is unknown or not installed.
    """

    def __init__(self, names: Sequence[str], run: Path, project: str, step: int) -> None:
        """Start them all; see the class."""
        check_trackers(names)
        self._trackers = [_started(name, run, project, step) for name in names]

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers; `step` counts over all stages."""
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)

    def picture(self, name: str, picture: Image, step: int) -> None:
        """Send a picture to the trackers that take any; trackio's does not, by way of accelerate."""
        for tracker in self._trackers:
            if hasattr(tracker, "log_images"):
                shape = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({name: picture[None]}, step=step, **shape)

    def close(self) -> None:
        """Write out what they still hold."""
        for tracker in self._trackers:
            tracker.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be started.

    Raises:
        TrackerError: Says which, and what to install.
    """
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise TrackerError(f"logging.trackers names {name!r}; accelerate knows {known}.")
        if importlib.util.find_spec(name) is None:
            how = "pip install 'prw[cologen]'" if name == "tensorboard" else f"pip install {name}"
            raise TrackerError(
                f"logging.trackers names {name!r}, which is not installed: {how}, or leave it out "
                "(--set 'logging.trackers=[]'). metrics.jsonl is written in any case."
            )


def _started(name: str, run: Path, project: str, step: int) -> Any:
    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        tracker = kind(name, run, purge_step=step + 1)
    elif kind.requires_logging_directory:
        tracker = kind(project, run)
    else:
        tracker = kind(project)
    if hasattr(tracker, "start"):  # before accelerate 1.9 it had started already
        tracker.start()
    return tracker

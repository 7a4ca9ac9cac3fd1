"""The folder of a run: its config, its ledger of stages, checkpoints; refuses what belongs to another run.

The names of its files are in runs/files.py.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from prw.storage.atomic import FILE_DRAFT, recover_folder, write_text
from recipes.cologen.config.run import RunConfig
from recipes.cologen.errors import BaseModelError, RunFolderError
from recipes.cologen.runs.checkpoint import read_stage_name, write_folder
from recipes.cologen.runs.config_changes import DifferentConfigError, check_config
from recipes.cologen.runs.data_binding import Content, check_contents, older_forms
from recipes.cologen.runs.files import (
    CHECKPOINTS,
    CONFIG,
    LATEST,
    LEDGER,
    POOL,
    STAGE,
    latest_folder,
    pool_folder,
    stage_file,
    stage_folder,
)
from recipes.cologen.runs.lock import LOCK_FILE, cannot_write


class StageOrderError(RunFolderError):
    """A stage was asked for before the stages that it builds on were finished."""


class StageRecord(BaseModel):
    """What the ledger knows of one stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["started", "finished"]
    step: int
    steps: int
    seconds: float
    updated: str
    share: float | None = None
    score: float | None = None


class Ledger(BaseModel):
    """The history of a run, as ledger.json holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    base: str
    stages: dict[str, StageRecord] = {}
    data: dict[str, str] = {}
    """Hashes of what data sets and annotators hold, by the key of their settings; see data_binding.py."""


class RunFolder:
    """A run's folder, opened for writing; see `open_run`."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        """Take over a folder that was checked."""
        self.path, self.ledger = path, ledger

    @property
    def latest(self) -> Path:
        """Where the stage in progress is kept."""
        return latest_folder(self.path)

    def stage(self, name: str) -> Path:
        """Where a finished stage is kept."""
        return stage_folder(self.path, name)

    def pool(self, name: str) -> Path:
        """The expert pool as it was when a stage ended."""
        return pool_folder(self.path, name)

    def is_finished(self, name: str) -> bool:
        """Whether a stage's checkpoint is complete."""
        return stage_file(self.path, name).is_file() and self.pool(name).is_dir()

    def finish(self, name: str, write: Any, summary: dict[str, Any]) -> None:
        """Keep a finished stage: `write` puts the pool into the folder it is given."""

        def fill(folder: Path) -> None:
            write(folder / POOL)
            (folder / STAGE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

        write_folder(self.stage(name), fill)

    def note(self, name: str, record: StageRecord) -> None:
        """Write a stage's record into the ledger."""
        self.ledger = self.ledger.model_copy(update={"stages": {**self.ledger.stages, name: record}})
        write_text(self.path / LEDGER, self.ledger.model_dump_json(indent=2) + "\n")

    def check_order(self, wanted: tuple[str, ...], names: tuple[str, ...]) -> None:
        """Refuse stages whose predecessors are neither finished nor asked for.

        Raises:
            StageOrderError: The message says which stages to train first.
        """
        first = next((name for name in wanted if not self.is_finished(name)), None)
        if first is None:
            return
        missing = [name for name in names[: names.index(first)] if not self.is_finished(name)]
        if missing:
            raise StageOrderError(
                f"stage {first!r} builds on {', '.join(missing)}, which {self.path} has not finished yet. "
                f"Train them first: --stage {missing[0]}..{first}, or --stage all. Or leave them out of the "
                f"run, in a folder of its own: --set 'stages=[{first}]'."
            )


def now() -> str:
    """The present time, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def base_fingerprint(path: Path) -> str:
    """Short hash of a base's transformer: names and sizes of its files, and the first MiB of each.

    Raises:
        BaseModelError: There is no transformer at that path.
    """
    files = sorted(file for file in (path / "transformer").glob("*") if file.is_file())
    if not files:
        raise BaseModelError(
            f"there is no FLUX base at {path}: expected a diffusers folder with a transformer/ in it. Give "
            "the right folder with --set base.path=PATH. The tiny base is "
            "recipes/cologen/assets/tiny_flux; if that is missing, restore it: git checkout "
            "recipes/cologen/assets"
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{file.stat().st_size}:".encode())
        with file.open("rb") as content:
            digest.update(content.read(2**20))
    return digest.hexdigest()[:16]


def open_run(
    path: Path,
    config: RunConfig,
    base: str,
    restart: str | None = None,
    held: Sequence[Content] = (),
    *,
    warn: Callable[[str], None] = lambda text: None,
) -> RunFolder:
    """Open or make a run's folder; settings that change nothing learnt may differ from the last time.

    Args:
        path: The folder.
        config: What the run is asked to be.
        base: Fingerprint of its base.
        restart: A stage to forget, with all after it; their settings may differ then.
        held: What its data and annotators hold.
        warn: Called with what this version makes otherwise than the one that began the run.

    Raises:
        DifferentConfigError: The folder holds a run with other settings (each is named), or on another base,
            or on other data.
        RunFolderError: The folder holds something else, or cannot be written, or the stage to forget has not
            begun.
    """
    if not (path / CONFIG).exists():
        if restart is not None:
            raise _not_begun(path, restart)
        return _create(path, config, _new_ledger(config, base, held))
    for name in (LATEST, *config.stage_names):
        recover_folder(path / CHECKPOINTS / name)
    before = _read_ledger(path)
    if restart is not None and not _has_begun(path, before, restart):
        raise _not_begun(path, restart)
    ledger = _without(before, restart)
    if not ledger.stages and (restart is not None or not _has_checkpoints(path)):
        # Nothing has been trained that would be kept, so nothing can differ from it.
        ledger = _new_ledger(config, base, held)
    else:
        check_config(path, config, tuple(ledger.stages), ledger.data)
        _check_base(path, config, ledger.base, base)
        check_contents(path, config, tuple(ledger.stages), ledger.data, held)
        for text in older_forms(config, tuple(ledger.stages), ledger.data, held):
            warn(text)
        ledger = ledger.model_copy(update={"data": {**ledger.data, **_digests(held)}})
    folder = RunFolder(path, ledger)
    if ledger != before:
        write_text(path / LEDGER, ledger.model_dump_json(indent=2) + "\n")
    if restart is not None:
        gone = {*before.stages, *config.stage_names[config.stage_names.index(restart) :]} - {*ledger.stages}
        _forget(folder, sorted(gone, key=[*config.stage_names, *before.stages].index))
    if config.to_yaml().encode() != (path / CONFIG).read_bytes():
        write_text(path / CONFIG, config.to_yaml())
    return folder


def _check_base(path: Path, config: RunConfig, there: str, here: str) -> None:
    """Refuse a base with other weights; where they lie makes no difference."""
    if there != here:
        raise DifferentConfigError(
            f"{path} was trained on another base: fingerprint {there} there, {here} now "
            f"({config.base_path}). Put the old base back, or give another --output."
        )


def _has_checkpoints(path: Path) -> bool:
    """Whether anything trained lies in the folder, whatever the ledger says."""
    checkpoints = path / CHECKPOINTS
    return checkpoints.is_dir() and any(checkpoints.iterdir())


def _has_begun(path: Path, ledger: Ledger, stage: str) -> bool:
    """Whether a stage has left anything: a record, or a checkpoint that a cut-off restart did not remove."""
    checkpoints = path / CHECKPOINTS
    in_progress = read_stage_name(checkpoints / LATEST) == stage
    return stage in ledger.stages or (checkpoints / stage).exists() or in_progress


def _not_begun(path: Path, stage: str) -> RunFolderError:
    return RunFolderError(
        f"stage {stage!r} of {path} is neither finished nor begun, so there is nothing to restart. Leave "
        "--restart out, or name a stage that was trained."
    )


def _without(ledger: Ledger, restart: str | None) -> Ledger:
    """The ledger before a stage."""
    names = list(ledger.stages)
    kept = names[: names.index(restart)] if restart in names else names
    return ledger.model_copy(update={"stages": {name: ledger.stages[name] for name in kept}})


def _forget(folder: RunFolder, names: list[str]) -> None:
    """Remove some stages' checkpoints, the last one first, in case it is cut off."""
    if read_stage_name(folder.latest) in names:
        shutil.rmtree(folder.latest)
    for name in reversed(names):
        shutil.rmtree(folder.stage(name), ignore_errors=True)


def _digests(held: Sequence[Content]) -> dict[str, str]:
    return {content.key: content.digest for content in held}


def _new_ledger(config: RunConfig, base: str, held: Sequence[Content]) -> Ledger:
    """The ledger of a run that has not begun; its fingerprint stands for settings and base."""
    both = hashlib.sha256(f"{config.fingerprint()}:{base}".encode())
    return Ledger(fingerprint=both.hexdigest()[:16], base=base, data=_digests(held))


def _create(path: Path, config: RunConfig, ledger: Ledger) -> RunFolder:
    if path.exists() and (not path.is_dir() or any(not _may_lie_there(entry) for entry in path.iterdir())):
        raise RunFolderError(
            f"{path} is not empty and is not a training run (it has no config.yaml). Give a new folder as "
            "--output."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / LEDGER, ledger.model_dump_json(indent=2) + "\n")
        write_text(path / CONFIG, config.to_yaml())
    except OSError as error:
        raise cannot_write(path, error) from error
    return RunFolder(path, ledger)


def _may_lie_there(entry: Path) -> bool:
    """A log of this very command's output, or what a creation that was cut off left."""
    is_ours = entry.name in (LOCK_FILE, LEDGER) or entry.name.startswith(FILE_DRAFT)
    return is_ours or entry.suffix == ".log"


def _read_ledger(path: Path) -> Ledger:
    file = path / LEDGER
    try:
        return Ledger.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{file} is missing or broken, so it is unknown what {path} holds ({error}). Give another "
            "--output."
        ) from error

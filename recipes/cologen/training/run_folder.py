"""The folder of a run: its config, its ledger of stages, checkpoints; refuses what belongs to another run.

config.yaml   ledger.json   metrics.jsonl   tensorboard/   report/
checkpoints/<stage>/{prw/, stage.json}      a finished stage
checkpoints/latest/                         the stage in progress, resumable
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from recipes.cologen.config import FREE_TO_CHANGE, RunConfig
from recipes.cologen.errors import BaseModelError, RunFolderError
from recipes.cologen.training.checkpoint import recover, write_folder, write_text


class DifferentConfigError(RunFolderError):
    """An output folder holds a run with other settings, or on another base."""


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


class RunFolder:
    """A run's folder, opened for writing; see `open_run`."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        """Take over a folder that was checked."""
        self.path, self.ledger = path, ledger

    @property
    def latest(self) -> Path:
        """Where the stage in progress is kept."""
        return self.path / "checkpoints" / "latest"

    def stage(self, name: str) -> Path:
        """Where a finished stage is kept."""
        return self.path / "checkpoints" / name

    def pool(self, name: str) -> Path:
        """The expert pool as it was when a stage ended."""
        return self.stage(name) / "prw"

    def is_finished(self, name: str) -> bool:
        """Whether a stage's checkpoint is complete."""
        return stage_file(self.path, name).is_file() and self.pool(name).is_dir()

    def finish(self, name: str, write: Any, summary: dict[str, Any]) -> None:
        """Keep a finished stage: `write` puts the pool into the folder it is given."""

        def fill(folder: Path) -> None:
            write(folder / "prw")
            (folder / "stage.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

        write_folder(self.stage(name), fill)

    def note(self, name: str, record: StageRecord) -> None:
        """Write a stage's record into the ledger."""
        self.ledger = self.ledger.model_copy(update={"stages": {**self.ledger.stages, name: record}})
        write_text(self.path / "ledger.json", self.ledger.model_dump_json(indent=2) + "\n")

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
                f"Train them first: --stage {missing[0]}..{first}, or --stage all."
            )


def stage_file(run: Path, name: str) -> Path:
    """The file that says that a stage is finished."""
    return run / "checkpoints" / name / "stage.json"


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


def open_run(path: Path, config: RunConfig, base: str, restart: str | None = None) -> RunFolder:
    """Open or make a run's folder; settings that change nothing learnt may differ from the last time.

    Args:
        path: The folder.
        config: What the run is asked to be.
        base: Fingerprint of its base.
        restart: A stage to forget, with all after it; their settings may differ then.

    Raises:
        DifferentConfigError: The folder holds a run with other settings (each is named), or on another base.
        RunFolderError: The folder holds something else.
    """
    if not (path / "config.yaml").exists():
        return _create(path, config, base)
    ledger = _without(_read_ledger(path), restart)
    _check_names(path, tuple(ledger.stages), config.stage_names)
    differing = _differing_fields(_read_config(path), config, set(ledger.stages))
    if differing:
        raise DifferentConfigError(
            f"{path} holds a run with other settings:\n"
            + "\n".join(f"  {key}: {there!r} there, {here!r} now" for key, there, here in differing)
            + f"\nGo on with its own settings (--config {path / 'config.yaml'}), or give another --output."
        )
    if ledger.base != base:
        raise DifferentConfigError(
            f"{path} was trained on another base: fingerprint {ledger.base} there, {base} now "
            f"({config.base_path}). Put the old base back, or give another --output."
        )
    for name in ("latest", *config.stage_names):
        recover(path / "checkpoints" / name)
    if config.to_yaml() != (path / "config.yaml").read_text(encoding="utf-8"):
        write_text(path / "config.yaml", config.to_yaml())
    folder = RunFolder(path, ledger)
    if restart is not None:
        _forget(folder, config.stage_names[config.stage_names.index(restart) :])
    return folder


def _without(ledger: Ledger, restart: str | None) -> Ledger:
    """The ledger before a stage."""
    names = list(ledger.stages)
    kept = names[: names.index(restart)] if restart in names else names
    return ledger.model_copy(update={"stages": {name: ledger.stages[name] for name in kept}})


def _forget(folder: RunFolder, names: tuple[str, ...]) -> None:
    """Remove some stages from disk: the ledger first, then the last stage, in case it is cut off."""
    write_text(folder.path / "ledger.json", folder.ledger.model_dump_json(indent=2) + "\n")
    for name in ("latest", *reversed(names)):
        shutil.rmtree(folder.path / "checkpoints" / name, ignore_errors=True)


def _create(path: Path, config: RunConfig, base: str) -> RunFolder:
    if path.exists() and (not path.is_dir() or any(not _may_lie_there(entry) for entry in path.iterdir())):
        raise RunFolderError(
            f"{path} is not empty and is not a training run (it has no config.yaml). Give a new folder as "
            "--output."
        )
    path.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(fingerprint=config.fingerprint(), base=base)
    write_text(path / "ledger.json", ledger.model_dump_json(indent=2) + "\n")
    write_text(path / "config.yaml", config.to_yaml())
    return RunFolder(path, ledger)


def _may_lie_there(entry: Path) -> bool:
    """A log of this very command's output, or what a creation that was cut off left."""
    return entry.suffix == ".log" or entry.name in ("ledger.json", ".ledger.json.new", ".config.yaml.new")


def _check_names(path: Path, started: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Refuse a config whose first stages are not those that the run has begun."""
    if names[: len(started)] != started:
        raise DifferentConfigError(
            f"{path} has trained the stages {', '.join(started)}, but the config begins with "
            f"{', '.join(names[: len(started)])}. Keep their order in 'stages', or give another --output."
        )


def _read_ledger(path: Path) -> Ledger:
    file = path / "ledger.json"
    try:
        return Ledger.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise RunFolderError(
            f"{file} is missing or broken, so it is unknown what {path} holds ({error}). Give another "
            "--output."
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RunFolderError(
            f"{path / 'config.yaml'} is not YAML: {error}. Give another --output."
        ) from error
    return values if isinstance(values, dict) else {}


def _differing_fields(
    there: dict[str, Any], config: RunConfig, started: set[str]
) -> list[tuple[str, Any, Any]]:
    """Settings that differ and matter: not those free to change, nor those of stages that have not begun."""
    old, new = _flatten(there), _flatten(config.model_dump(mode="json"))
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    return [
        (key, old.get(key, "(absent)"), new.get(key, "(absent)"))
        for key in keys
        if key.split(".")[0] not in FREE_TO_CHANGE
        and (not key.startswith("stages.") or key.split(".")[1] in started)
    ]


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    parts = [_flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in values.items()]
    return {key: value for part in parts for key, value in part.items()}

"""Reads what a training run left in its folder: finished stages, curves, facts; loads no model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from recipes.cologen.config.run import RunConfig, load_config
from recipes.cologen.errors import RunFolderError
from recipes.cologen.runs.files import CHECKPOINTS, CONFIG, METRICS, REPORT, pool_folder, stage_file
from recipes.cologen.stages import stage_index


class TrainRow(BaseModel):
    """One logged training step."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["train"]
    stage: str
    step: int
    loss: float
    task_loss: float
    veteran_loss: float
    share: float
    gate: float
    lr: float
    seconds: float


class ValidationRow(BaseModel):
    """Scores and routing measured on held-out examples during training."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["validation"]
    stage: str
    step: int
    scores: dict[str, float]


Row = TypeVar("Row", TrainRow, ValidationRow)


@dataclass(frozen=True)
class RunReader:
    """The folder of one training run, `runs/NAME`, opened for reading."""

    path: Path

    def __post_init__(self) -> None:
        """Refuse a folder that no training wrote."""
        if not (self.path / CONFIG).is_file():
            raise RunFolderError(self._no_run())

    def _no_run(self) -> str:
        """Why the path is no run, and what to give instead."""
        if self.path.exists() and not self.path.is_dir():
            return f"{self.path} is not a training run: it is a file. Give the folder that training wrote."
        for folder in self.path.absolute().parents:
            if (folder / CONFIG).is_file() and (folder / CHECKPOINTS).is_dir():
                return f"{self.path} is not a training run, but a part of one. Did you mean {folder}?"
        start = f"{self.path} is not a training run"
        if self.path.is_dir():
            return f"{start}: it has no config.yaml. Give the folder that training wrote."
        return (
            f"{start}: there is no such folder. Give the folder that training wrote "
            f"(python -m recipes.cologen.train --config tiny --output {self.path})."
        )

    @property
    def report(self) -> Path:
        """Where the report of this run goes."""
        return self.path / REPORT

    def pool(self, stage: str) -> Path:
        """Folder of the expert pool saved when `stage` ended.

        Raises:
            RunFolderError: The stage has not ended yet.
            UnknownStageError: The run has no such stage.
        """
        stage_index(stage, self.settings.stage_names)
        if stage not in self.finished_stages():
            finished = ", ".join(self.finished_stages()) or "none"
            raise RunFolderError(
                f"stage {stage!r} of {self.path} is not finished (finished: {finished}). "
                f"Train it first: python -m recipes.cologen.train --config {self.path / CONFIG} "
                f"--stage {self.settings.stage_names[0]}..{stage} --output {self.path}"
            )
        return pool_folder(self.path, stage)

    def finished_stages(self) -> tuple[str, ...]:
        """Stages whose checkpoint is complete, in the order of the curriculum."""
        return tuple(
            stage
            for stage in self.settings.stage_names
            if stage_file(self.path, stage).is_file() and pool_folder(self.path, stage).is_dir()
        )

    @cached_property
    def settings(self) -> RunConfig:
        """The settings that the run started with.

        Raises:
            ConfigError: config.yaml cannot be read.
        """
        return load_config(self.path / CONFIG)

    def train_rows(self) -> list[TrainRow]:
        """Logged training steps, each step once (after a resume the later writing counts)."""
        return self._rows(TrainRow, "train")

    def validation_rows(self) -> list[ValidationRow]:
        """Logged validations, each step once."""
        return self._rows(ValidationRow, "validation")

    def _rows(self, row_type: type[Row], kind: str) -> list[Row]:
        path = self.path / METRICS
        if not path.is_file():
            return []
        newest: dict[tuple[str, int], Row] = {}
        for number, values in _json_lines(path):
            if values.get("kind") != kind:
                continue
            try:
                row = row_type.model_validate(values)
            except ValidationError as error:
                raise RunFolderError(
                    f"{path}, line {number}: not a {kind} row of this recipe: {error}"
                ) from error
            newest[row.stage, row.step] = row
        order = self.settings.stage_names
        return sorted(newest.values(), key=lambda row: (stage_index(row.stage, order), row.step))


def _json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Numbered objects of a JSONL file; a torn last line, left by a killed run, is dropped."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise RunFolderError(f"{path}, line {number}: not JSON ({error}). Remove that line.") from error
    return rows

"""Measures cells of the tables, each a task on a checkpoint, and keeps them on disk: none is measured twice.

Which cells there are is scores.py's business. A kept cell counts only while checkpoint, base, settings and
examples are the same; it is written after its pictures and in one go, so a killed evaluation is resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PilImage
from pydantic import BaseModel, ConfigDict, ValidationError

import prw
from prw.storage.atomic import write_text
from recipes.cologen.config.model import Shift
from recipes.cologen.data.annotators.annotate import Annotators
from recipes.cologen.data.opening import DataSource, held_out_records
from recipes.cologen.data.record import Example
from recipes.cologen.errors import RunFolderError
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.runs.files import CONFIG
from recipes.cologen.runs.loading import base_folder, load_base
from recipes.cologen.runs.reader import RunReader
from recipes.cologen.training.validation.scores import (
    TaskScore,
    evaluate_task,
    held_out_examples,
)

Mode = Literal["full_pool", "as_of", "experts_off"]
BATCH_SIZE = 64
"""Pictures that are generated at once where the run's `machine.micro_batch` does not say."""
SHOWN = 8
"""Pictures of each cell that are kept for the grids."""


class Cell(NamedTuple):
    """One entry of a table: a task, measured on the pool saved after `checkpoint`.

    `full_pool` routes among all experts of that checkpoint, `as_of` among those it had when the task's own
    stage ended, `experts_off` uses the base alone (its checkpoint is called `base`).
    """

    checkpoint: str
    task: str
    mode: Mode

    @property
    def name(self) -> str:
        """A file name and a line of progress: `grounding-inpainting-as_of`."""
        return "-".join(self)


class Conditions(BaseModel):
    """What a measurement depends on besides its cell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    seed: int
    steps: int
    source_timestep: str
    guidance: float
    true_cfg_scale: float = 1.0
    negative_prompt: str = ""
    shift: Shift = "base"
    held_out: str
    examples: str
    """Hash of what the examples show and ask for."""
    weights: str
    """Hash of the base's and the pool's files."""


class Measurement(BaseModel):
    """What was measured on one cell, as it is kept on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conditions: Conditions
    score: float
    exact: bool
    by_kind: dict[str, float]
    values: tuple[float, ...]
    sites: tuple[str, ...]
    experts: tuple[str, ...]
    usage: tuple[tuple[float, ...], ...]
    shown: tuple[int, ...]
    """Numbers of the examples whose pictures are kept, top to bottom of the PNG beside this file."""


@dataclass(frozen=True)
class Scorer:
    """What every measurement of a run shares: base, run folder, held-out pictures, and how many of them."""

    model: FluxBase
    """The base with its source stream, without a pool: each checkpoint's is loaded and taken out again."""
    run: RunReader
    source: DataSource
    n: int
    announce: Callable[[str], None] = field(default=lambda line: None)
    """Called with every cell that is measured anew."""
    annotators: Annotators = field(default_factory=Annotators)
    """What draws control maps that are not stored."""
    _hashes: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Hash of each task's examples, once taken: making them anew for every cell would take long."""

    @property
    def batch_size(self) -> int:
        """Most pictures that are generated at once."""
        return self.run.settings.machine.micro_batch or BATCH_SIZE

    def examples(self, task: str) -> list[Example]:
        """The held-out examples of a task, their sources drawn; the same ones for every cell."""
        examples = held_out_examples(
            self.source.stage(task).records, task, self.n, seed=self.run.settings.data.held_out_seed
        )
        return self.annotators.complete(examples, self.model.device)

    def conditions(self, cell: Cell) -> Conditions:
        """What a measurement of this cell depends on now."""
        settings = self.run.settings
        weights = hash_files(base_folder(settings), whole=False)
        if cell.mode != "experts_off":
            weights = f"{weights}/{hash_files(self.run.pool(cell.checkpoint), whole=True)}"
        return Conditions(
            n=self.n,
            seed=settings.data.held_out_seed,
            steps=settings.sampling.steps,
            source_timestep=settings.flow.source_timestep,
            guidance=settings.sampling.guidance,
            true_cfg_scale=settings.sampling.true_cfg_scale,
            negative_prompt=settings.sampling.negative_prompt,
            shift=settings.sampling.shift,
            held_out=str(settings.data.held_out),
            examples=self._hash_of_examples(cell.task),
            weights=weights,
        )

    def _hash_of_examples(self, task: str) -> str:
        if task not in self._hashes:
            self._hashes[task] = hash_examples(self.examples(task))
        return self._hashes[task]

    def cached(self, cell: Cell) -> Measurement | None:
        """The kept measurement of a cell, if weights, settings and examples are those it was made with."""
        path = self._path(cell, ".json")
        if not path.is_file():
            return None
        try:
            kept = Measurement.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError:
            return None  # written by another version of this recipe
        return kept if kept.conditions == self.conditions(cell) else None

    def shown(self, cell: Cell) -> list[NDArray[np.uint8]]:
        """Kept pictures of a measured cell, uint8 [height, width, 3], as numbered by `Measurement.shown`."""
        with PilImage.open(self._path(cell, ".png")) as strip:
            pixels = np.asarray(strip.convert("RGB"))
        kept = self.cached(cell)
        return [] if kept is None else list(np.split(pixels, len(kept.shown)))

    def measure(self, cells: Sequence[Cell]) -> dict[Cell, Measurement]:
        """Measure every cell, taking kept ones from disk and loading each checkpoint once."""
        found = {cell: kept for cell in cells if (kept := self.cached(cell)) is not None}
        missing = [cell for cell in dict.fromkeys(cells) if cell not in found]
        for checkpoint in dict.fromkeys(cell.checkpoint for cell in missing):
            with self._pool(checkpoint) as weave:
                for cell in missing:
                    if cell.checkpoint == checkpoint:
                        found[cell] = self._measure(cell, weave)
                        self.announce(
                            f"{cell.name}: {found[cell].score:.3f} ({len(found)} of {len(set(cells))})"
                        )
        return {cell: found[cell] for cell in cells}

    @contextmanager
    def _pool(self, checkpoint: str) -> Iterator[prw.Weave | None]:
        """The pool saved after a stage, in the model; the bare base for `base`."""
        if checkpoint == "base":
            yield None
            return
        weave = prw.load(self.model.transformer, self.run.pool(checkpoint))
        try:
            yield weave
        finally:
            weave.eject()

    def _measure(self, cell: Cell, weave: prw.Weave | None) -> Measurement:
        settings, examples = self.run.settings, self.examples(cell.task)
        with weave.as_of(cell.task) if weave is not None and cell.mode == "as_of" else nullcontext():
            score = evaluate_task(
                self.model,
                weave,
                examples,
                steps=settings.sampling.steps,
                seed=settings.data.held_out_seed,
                batch_size=self.batch_size,
                source_timestep=settings.flow.source_timestep,
                guidance=settings.sampling.guidance,
                true_cfg_scale=settings.sampling.true_cfg_scale,
                negative_prompt=settings.sampling.negative_prompt,
                shift=settings.sampling.shift,
            )
        return self._keep(cell, score, shown_examples(score.kinds))

    def _keep(self, cell: Cell, score: TaskScore, shown: Sequence[int]) -> Measurement:
        self._path(cell, ".png").parent.mkdir(parents=True, exist_ok=True)
        PilImage.fromarray(np.concatenate([score.images[i] for i in shown])).save(self._path(cell, ".png"))
        measurement = Measurement(
            conditions=self.conditions(cell),
            score=score.score,
            exact=score.exact,
            by_kind=score.by_kind,
            values=score.values,
            sites=score.sites,
            experts=score.experts,
            usage=tuple(tuple(row) for row in score.usage.tolist()),
            shown=tuple(shown),
        )
        write_text(self._path(cell, ".json"), measurement.model_dump_json(indent=1))
        return measurement

    def _path(self, cell: Cell, suffix: str) -> Path:
        name = f"{cell.name}-n{self.n}-seed{self.run.settings.data.held_out_seed}"
        return self.run.report / "cells" / f"{name}{suffix}"


def shown_examples(kinds: Sequence[str], count: int = SHOWN) -> list[int]:
    """Numbers of the first examples of each variant in turn, ascending: picked by kind, never by result."""
    queues = {kind: [i for i, other in enumerate(kinds) if other == kind] for kind in sorted(set(kinds))}
    turns = [queue[turn] for turn in range(count) for queue in queues.values() if turn < len(queue)]
    return sorted(turns[:count])


def hash_examples(examples: Iterable[Example]) -> str:
    """Short hash of all that decides how examples are drawn and scored: their words, pixels and scenes."""
    total = hashlib.sha256()
    for example in examples:
        wanted = [example.meta.get(key) for key in ("scene", "alternatives")]
        total.update(repr((example.task, example.kind, example.prompt, *wanted)).encode())
        for pixels in (example.source, example.target, example.meta.get("hole"), *example.further):
            if pixels is not None:
                total.update(repr(pixels.shape).encode() + pixels.tobytes())
    return total.hexdigest()[:16]


@cache
def _hash_file(path: Path, size: int, modified_ns: int, whole: bool) -> str:
    """Hash of a file; a changed size or time makes it read again."""
    with path.open("rb") as file:
        if whole:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(f"{size}".encode() + file.read(1 << 20)).hexdigest()


def hash_files(folder: Path, *, whole: bool) -> str:
    """Short hash of the names and contents of all files of a folder.

    Args:
        folder: Where the files are.
        whole: Whether to read files to their end; else size and first MiB stand for them (a base has 24 GB).
    """
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        state = path.stat()
        total.update(str(path.relative_to(folder)).encode())
        total.update(_hash_file(path, state.st_size, state.st_mtime_ns, whole).encode())
    return total.hexdigest()[:16]


def open_scorer(
    path: Path,
    *,
    model: FluxBase | None = None,
    n: int | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> Scorer:
    """Open the run in a folder.

    Args:
        path: The folder that training wrote, with at least one finished stage.
        model: The run's base without a pool; None loads it, onto the GPU where there is one.
        n: Held-out examples per task; None takes the run's `report.samples`.
        announce: Called with every cell that is measured anew.

    Raises:
        RunFolderError: The folder holds no run, no finished stage, or nothing held out.
        BaseModelError: The base is missing.
        FolderDataError: The folder of held-out pictures has a fault.
        AnnotatorError: What draws control maps cannot be loaded.
    """
    run = RunReader(path)
    if not run.finished_stages():
        raise RunFolderError(
            f"{path} has no finished stage yet, so there is nothing to measure. Train on: "
            f"python -m recipes.cologen.train --config {path / CONFIG} --output {path}"
        )
    source = held_out_records(run.settings.data)
    if source is None:
        raise RunFolderError(
            f"{path} holds no pictures out, so nothing can be scored. Name a folder of pictures that it "
            f"was not trained on as data.held_out (folder:PATH) in {path / CONFIG}"
        )
    if model is None:
        model = load_base(run.settings, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    model.long_prompts = run.settings.held_out_long_prompts
    wanted = run.settings.data.annotators if "control" in run.settings.stage_names else {}
    annotators = Annotators.load(wanted, model.device)
    return Scorer(model, run, source, n or run.settings.report.samples, announce, annotators)

"""The scores of a run: the cells they are made of, scores.json, tables of every task after every stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prw.storage.atomic import write_text
from recipes.cologen.report.cells import Cell, Measurement, Mode, Scorer

BASE = "base"
MODES: tuple[Mode, ...] = ("full_pool", "as_of")


@dataclass(frozen=True)
class Scores:
    """All measurements of a run, read by what they mean."""

    tasks: tuple[str, ...]
    """Every task, in the order of the curriculum."""
    stages: tuple[str, ...]
    """Finished stages, in the order of the curriculum."""
    cells: Mapping[Cell, Measurement]

    @property
    def after_own_stage(self) -> dict[str, float]:
        """Score of each finished task on the checkpoint that its own stage saved."""
        return {stage: self.cells[Cell(stage, stage, "full_pool")].score for stage in self.stages}

    @property
    def final_as_of(self) -> dict[str, float]:
        """Score of each finished task on the last checkpoint, with the pool as of the task's stage."""
        return self._final("as_of")

    @property
    def final_full_pool(self) -> dict[str, float]:
        """Score of each finished task on the last checkpoint, routed among all experts."""
        return self._final("full_pool")

    @property
    def experts_off(self) -> dict[str, float]:
        """Score of every task by the base alone."""
        return {task: self.cells[Cell(BASE, task, "experts_off")].score for task in self.tasks}

    def forgetting(self, mode: Mode) -> dict[str, float]:
        """How much of each task's score right after its stage is gone at the end, as measured."""
        final = self._final(mode)
        return {stage: score - final[stage] for stage, score in self.after_own_stage.items()}

    def table(self, mode: Mode) -> dict[str, dict[str, float]]:
        """Stage after which was measured -> task -> score.

        With `as_of`, a task whose stage is yet to come has no pool of its own: its entry is the whole pool's.
        """
        return {
            stage: {task: self.cells[_table_cell(self.tasks, stage, task, mode)].score for task in self.tasks}
            for stage in self.stages
        }

    def _final(self, mode: Mode) -> dict[str, float]:
        return {stage: self.cells[Cell(self.stages[-1], stage, mode)].score for stage in self.stages}


def measure_scores(scorer: Scorer) -> Scores:
    """Measure everything that `scores.json` and `table.json` need, or take it from disk."""
    tasks, stages = scorer.run.settings.stage_names, scorer.run.finished_stages()
    return Scores(tasks, stages, scorer.measure(all_cells(tasks, stages)))


def all_cells(tasks: Sequence[str], stages: Sequence[str]) -> list[Cell]:
    """The cells of the base, of both tables, and of the final scores, each once, by checkpoint."""
    cells = [Cell(BASE, task, "experts_off") for task in tasks]
    for stage in stages:
        cells += [_table_cell(tasks, stage, task, mode) for mode in MODES for task in tasks]
    cells += [Cell(stages[-1], stage, "as_of") for stage in stages]
    return list(dict.fromkeys(cells))


def task_cells(task: str, stages: Sequence[str]) -> list[Cell]:
    """The cells of one finished task: the base, after its stage, at the end with and without `as_of`."""
    last = stages[-1]
    return [
        Cell(BASE, task, "experts_off"),
        Cell(task, task, "full_pool"),
        Cell(last, task, "as_of"),
        Cell(last, task, "full_pool"),
    ]


def write_scores(scorer: Scorer, scores: Scores) -> tuple[Path, Path]:
    """Write report/scores.json and report/table.json, and return their paths.

    Those names belong to the number of examples that the run's settings ask for (`report.samples`): measured
    on another number, the files are called `scores-n20.json` and `table-n20.json`.
    """
    summary = {
        "after_own_stage": scores.after_own_stage,
        "final_as_of": scores.final_as_of,
        "final_full_pool": scores.final_full_pool,
        "experts_off": scores.experts_off,
        "n": scorer.n,
    }
    tables = {
        "full_pool": scores.table("full_pool"),
        "as_of": scores.table("as_of"),
        "experts_off": scores.experts_off,
        "forgetting": {"as_of": scores.forgetting("as_of"), "full_pool": scores.forgetting("full_pool")},
        "by_kind": {stage: scores.cells[Cell(stage, stage, "full_pool")].by_kind for stage in scores.stages},
        "n": scorer.n,
        "seed": scorer.run.settings.data.held_out_seed,
    }
    suffix = "" if scorer.n == scorer.run.settings.report.samples else f"-n{scorer.n}"
    paths = scorer.run.report / f"scores{suffix}.json", scorer.run.report / f"table{suffix}.json"
    for path, content in zip(paths, (summary, tables), strict=True):
        write_text(path, json.dumps(content, indent=2) + "\n")
    return paths


def _table_cell(tasks: Sequence[str], stage: str, task: str, mode: Mode) -> Cell:
    """The cell of a table's entry: where no later expert is there yet, the task's pool is the full one."""
    return Cell(stage, task, mode if tasks.index(task) < tasks.index(stage) else "full_pool")

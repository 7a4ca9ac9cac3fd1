"""Shows the scores of a run in the terminal, as report/scores.json has them; measures nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

COLUMNS = {
    "experts off": "experts_off",
    "after its own stage": "after_own_stage",
    "at the end, as of its stage": "final_as_of",
    "at the end, full pool": "final_full_pool",
}


def score_table(file: Path) -> Table | None:
    """The table of a scores.json, a row for each task; None where nothing was scored."""
    if not file.is_file():
        return None
    scores = json.loads(file.read_text(encoding="utf-8"))
    rows = {
        task: [scores[measure].get(task) for measure in COLUMNS.values()] for task in scores["experts_off"]
    }
    return table_of(rows, title=f"scores on {scores['n']} held-out examples per task")


def table_of(rows: Mapping[str, Sequence[float | None]], title: str | None = None) -> Table:
    """A row of scores for each task, in the order of `COLUMNS`; what was not measured is a dash."""
    table = Table("task", *COLUMNS, title=title)
    for task, found in rows.items():
        table.add_row(task, *("-" if score is None else f"{score:.3f}" for score in found))
    return table

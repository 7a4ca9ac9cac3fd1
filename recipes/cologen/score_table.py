"""Shows the scores of a run in the terminal, as report/scores.json has them; measures nothing."""

from __future__ import annotations

import json
from pathlib import Path

from rich.table import Table

COLUMNS = {
    "experts off": "experts_off",
    "after its own stage": "after_own_stage",
    "at the end, as of its stage": "final_as_of",
    "at the end, full pool": "final_full_pool",
}


def score_table(report: Path) -> Table | None:
    """The score table of a report's folder: a row for each task; None where nothing was scored."""
    file = report / "scores.json"
    if not file.is_file():
        return None
    scores = json.loads(file.read_text(encoding="utf-8"))
    table = Table("task", *COLUMNS, title=f"scores on {scores['n']} held-out examples per task")
    for task in scores["experts_off"]:
        found = [scores[measure].get(task) for measure in COLUMNS.values()]
        table.add_row(task, *("-" if score is None else f"{score:.3f}" for score in found))
    return table

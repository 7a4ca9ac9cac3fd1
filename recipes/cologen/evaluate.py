"""Scores a run: `python -m recipes.cologen.evaluate --checkpoint runs/tiny [--n 200] [--stage all]`.

Writes report/scores.json and report/table.json of the run, or scores-n50.json and table-n50.json where 50 is
not the run's own number of examples. What was measured is kept in report/cells, so an interrupted evaluation
is resumed. Figures and pages are made in report/, not here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from prw.errors import PrwError
from recipes.cologen.cli import add_checkpoint_argument, positive, refuse, silence_loading_bars
from recipes.cologen.errors import CologenError
from recipes.cologen.report.cells import Scorer, open_scorer
from recipes.cologen.report.score_table import score_table, table_of
from recipes.cologen.report.scores import measure_scores, task_cells, write_scores
from recipes.cologen.runs.interruption import STOPPED
from recipes.cologen.stages import select_stages


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 refused, 130 stopped."""
    args = _parser().parse_args(arguments)
    silence_loading_bars()
    console = Console(soft_wrap=True)
    try:
        scorer = open_scorer(args.checkpoint, n=args.n, announce=console.print)
        if args.stage == "all":
            scores = measure_scores(scorer)
            summary, tables = write_scores(scorer, scores)
            console.print(score_table(summary))
            console.print(f"written: {summary} and {tables.name}")
        else:
            console.print(_some_tasks(scorer, args.stage))
    except (CologenError, PrwError) as error:
        return refuse(error)
    except OSError as error:
        return refuse(f"a file cannot be read or written: {error}")
    except KeyboardInterrupt:
        console.print("stopped; what was measured is kept, the same command goes on from it")
        return STOPPED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.cologen.evaluate", description="Score a run on held-out examples."
    )
    add_checkpoint_argument(parser)
    parser.add_argument(
        "--n",
        type=positive,
        help="held-out examples per task (default: report.samples of the run; another number is written to "
        "scores-nN.json and table-nN.json)",
    )
    parser.add_argument(
        "--stage",
        default="all",
        help="all (also writes scores.json and table.json), one stage's task, or a range FIRST..LAST",
    )
    return parser


def _some_tasks(scorer: Scorer, wanted: str) -> Table:
    """Measure and show the tasks of some stages; scores.json, which holds all, is left alone."""
    rows: dict[str, list[float]] = {}
    for stage in select_stages(wanted, scorer.run.settings.stage_names):
        scorer.run.pool(stage)  # refuses an unfinished stage before anything is measured
        cells = task_cells(stage, scorer.run.finished_stages())
        measured = scorer.measure(cells)
        rows[stage] = [measured[cell].score for cell in cells]
    return table_of(rows)


if __name__ == "__main__":
    sys.exit(main())

"""Trains CoLoGen: `python -m recipes.cologen.train --config tiny --stage all --output runs/tiny`.

The same command again resumes; when all is done it says so and where the report is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from prw.errors import PrwError
from recipes.cologen.cli import add_config_arguments, refuse, silence_loading_bars
from recipes.cologen.config.files import with_data
from recipes.cologen.config.run import RunConfig, load_config
from recipes.cologen.errors import CologenError
from recipes.cologen.report import build_report
from recipes.cologen.report.score_table import score_table
from recipes.cologen.runs.files import CONFIG, PAGE, REPORT, SCORES, stage_file
from recipes.cologen.runs.interruption import STOPPED
from recipes.cologen.runs.lock import hold_run_together
from recipes.cologen.training.run import Outcome, join_processes, train


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 refused, 130 stopped and saved."""
    args = parser().parse_args(arguments)
    console = console or Console()
    silence_loading_bars()
    try:
        config = load_config(args.config, with_data(args.set, args.data))
        accelerator = join_processes(config)
        with hold_run_together(args.output, accelerator):
            outcome = train(config, args.output, args.stage, console, restart=args.restart)
            first = accelerator.is_main_process
            return _finish(outcome, config, args.output, console) if first else 0
    except (CologenError, PrwError) as error:
        return refuse(error)
    except OSError as error:
        return refuse(
            f"{error}. What {args.output} holds is intact, its last checkpoint too: once there is room and "
            "the disk answers, run the same command to go on from it."
        )
    except KeyboardInterrupt:
        console.print("stopped; run the same command to go on from the last checkpoint", highlight=False)
        return STOPPED


def _finish(outcome: Outcome, config: RunConfig, output: Path, console: Console) -> int:
    """Say where things stand; build the report once all stages are done."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if outcome.stopped is not None:
        state = outcome.stopped
        say(
            f"stopped in stage {state.stage} after step {state.step} and saved; run the same command to go on"
        )
        return STOPPED
    if not outcome.complete:
        done = ", ".join(outcome.trained) or "nothing was left to do"
        say(f"done: {done}; the other stages are still to be trained")
        return 0
    page = output / REPORT / PAGE
    if _is_older(page, [output / CONFIG, *(stage_file(output, name) for name in config.stage_names)]):
        say("all stages are finished; building the report")
        page = _build(output, console, say)
    held_out = config.data.held_out or config.data.source == "world"
    table = score_table(page.parent / SCORES) if held_out else None
    if table is not None:
        console.print(table)
    say(f"all is done; the report is {page}")
    return 0


def _build(output: Path, console: Console, say: Callable[[str], None]) -> Path:
    """Build the report; measurements are one line that changes, or many where there is no terminal."""
    if not console.is_terminal:
        return build_report(output, announce=say)
    with console.status("measuring") as status:
        return build_report(output, announce=lambda line: status.update(escape(f"measured {line}")))


def _is_older(page: Path, sources: Sequence[Path]) -> bool:
    """Whether a page is missing or older than what it reports."""
    return not page.exists() or page.stat().st_mtime < max(source.stat().st_mtime for source in sources)


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(prog="python -m recipes.cologen.train", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--output", required=True, type=Path, help="folder of the run; the same folder resumes"
    )
    parser.add_argument("--restart", metavar="STAGE", help="train this stage and all after it anew")
    parser.add_argument(
        "--resume", action="store_true", help="changes nothing: a run always goes on where it was"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

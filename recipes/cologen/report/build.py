"""Builds the report of a run: measures what is missing, draws every figure, writes the page."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from recipes.cologen.data.opening import held_out_records
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.report.cells import Cell, Measurement, Scorer, open_scorer
from recipes.cologen.report.figures import Usage, draw_tables, draw_training, draw_usage, draw_validation
from recipes.cologen.report.grids import GridRow, draw_grid
from recipes.cologen.report.page import Section, html_details, html_picture, html_table, write_page
from recipes.cologen.report.scores import BASE, Scores, measure_scores, write_scores
from recipes.cologen.runs.files import CONFIG, PAGE
from recipes.cologen.runs.reader import RunReader

OVERVIEW = "overview.png"
"""One example of every stage; the README shows it."""
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy")


def build_report(
    run_dir: Path,
    *,
    model: FluxBase | None = None,
    n: int | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> Path:
    """Measure a run's scores and write its report; what was measured before is taken from disk.

    Args:
        run_dir: The folder that training wrote, with at least one finished stage.
        model: The run's base without a pool; None loads it.
        n: Held-out examples per task; None takes the run's `report.samples`.
        announce: Called with every new measurement.

    Returns:
        The path of the page, `report/index.html` of the run.

    Raises:
        RunFolderError: The folder holds no run, or no finished stage.
    """
    run = RunReader(run_dir)
    run.report.mkdir(exist_ok=True)
    if held_out_records(run.settings.data) is None:
        nothing = "This run holds no pictures out (data.held_out), so there is nothing to score it on."
        measured = [Section("Scores", nothing, [])]
    else:
        measured = _measured_sections(open_scorer(run_dir, model=model, n=n, announce=announce))
    sections = [*measured, _training_section(run), _facts_section(run)]
    return write_page(run.report / PAGE, f"CoLoGen run: {run.settings.name}", sections)


def _measured_sections(scorer: Scorer) -> list[Section]:
    """Everything that takes generating pictures."""
    scores = measure_scores(scorer)
    write_scores(scorer, scores)
    _draw_overview(scorer, scores)
    return [
        _scores_section(scorer, scores),
        *(_stage_section(scorer, scores, stage) for stage in scores.stages),
        _tables_section(scorer, scores),
        _routing_section(scorer, scores),
    ]


def _scores_section(scorer: Scorer, scores: Scores) -> Section:
    measures = {
        "experts off (the base alone)": scores.experts_off,
        "after its own stage": scores.after_own_stage,
        "at the end, pool as of its stage": scores.final_as_of,
        "at the end, full pool": scores.final_full_pool,
        "forgotten with as_of (second row minus third)": scores.forgetting("as_of"),
        "forgotten with the full pool": scores.forgetting("full_pool"),
    }
    rows = {name: [values.get(task) for task in scores.tasks] for name, values in measures.items()}
    exact = all(measurement.exact for measurement in scores.cells.values())
    what = "Exact success by the oracle" if exact else "Closeness, 1 - mean |output - target| / 255,"
    tolerance = " (up to two wrong pixels of the 64 of a quadrant)" if exact else ""
    note = (
        f"{what} on the same {scorer.n} held-out examples per task{tolerance}. as_of restores the pool and "
        "router of the moment when a task's own stage ended; without it the router decides as it has drifted "
        "since."
    )
    overview = html_picture(OVERVIEW, "the first held-out example of every stage")
    return Section("Scores", note, [html_table(["", *scores.tasks], rows), overview])


def _draw_overview(scorer: Scorer, scores: Scores) -> None:
    """Draw the first held-out example of every stage, right after its stage: a run at a glance."""
    rows = []
    for stage in scores.stages:
        own, off = Cell(stage, stage, "full_pool"), Cell(BASE, stage, "experts_off")
        first = _grid_rows(scorer, scores, own, off)[0]
        rows.append(first._replace(kind=f"{stage}: {first.kind}"))
    draw_grid("The first held-out example of every stage", rows, scorer.run.report / OVERVIEW)


def _stage_section(scorer: Scorer, scores: Scores, stage: str) -> Section:
    own, off = Cell(stage, stage, "full_pool"), Cell(BASE, stage, "experts_off")
    name = f"stage-{stage}.png"
    draw_grid(
        f"{stage}, right after its stage", _grid_rows(scorer, scores, own, off), scorer.run.report / name
    )
    kinds = scores.cells[own].by_kind
    rows: dict[str, list[float | None]] = {
        "after its own stage": list(kinds.values()),
        "experts off": [scores.cells[off].by_kind.get(kind) for kind in kinds],
    }
    note = "The first held-out examples of each kind, not chosen by result."
    grid = html_picture(name, f"{stage}: sources, prompt, target, output, output without experts")
    return Section(stage.capitalize(), note, [grid, html_table(["", *kinds], rows)])


def _grid_rows(scorer: Scorer, scores: Scores, own: Cell, off: Cell) -> list[GridRow]:
    examples, measured, base = scorer.examples(own.task), scores.cells[own], scores.cells[off]
    pictures = zip(measured.shown, scorer.shown(own), scorer.shown(off), strict=True)
    return [
        GridRow(
            prompt=examples[number].prompt,
            kind=examples[number].kind,
            source=examples[number].source,
            target=examples[number].target,
            output=output,
            right=_mark(measured, number),
            base_output=base_output,
            base_right=_mark(base, number),
            further=tuple(examples[number].further),
        )
        for number, output, base_output in pictures
    ]


def _mark(measurement: Measurement, number: int) -> bool | None:
    return measurement.values[number] == 1.0 if measurement.exact else None


def _tables_section(scorer: Scorer, scores: Scores) -> Section:
    titles = {"full pool (its router of then decides)": "full_pool", "as_of (the task's own pool)": "as_of"}
    tables = {
        title: scores.table("as_of" if mode == "as_of" else "full_pool") for title, mode in titles.items()
    }
    draw_tables(tables, scores.experts_off, scorer.run.report / "tables.png")
    note = (
        "Every task's score after every stage. Framed: the task of the stage that just ended. Above the "
        "diagonal a task's stage is yet to come, so both tables show the whole pool there."
    )
    return Section("Every task after every stage", note, [html_picture("tables.png", "score tables")])


def _training_section(run: RunReader) -> Section:
    rows, stages = run.train_rows(), run.settings.stages
    blocks = []
    if rows:
        draw_training(rows, {name: stage.rho for name, stage in stages.items()}, run.report / "training.png")
        blocks.append(html_picture("training.png", "loss and share of every stage"))
    if validations := run.validation_rows():
        draw_validation(validations, run.report / "validation.png")
        blocks.append(html_picture("validation.png", "validation scores"))
    last = {row.stage: row for row in rows}
    facts = {
        name: [
            stage.steps,
            stage.lr,
            stage.rho,
            last[name].share,
            abs(last[name].share - stage.rho),
            last[name].seconds,
        ]
        for name, stage in stages.items()
        if name in last
    }
    head = ["stage", "steps", "learning rate", "rho", "share at the end", "distance from rho", "seconds"]
    note = (
        "Share: part of the routing decisions that went to the newest expert; dashed: its target rho. Gate, "
        "the thin line: mean weight of the chosen experts."
    )
    return Section("Training", note, [*blocks, html_table(head, facts)])


def _routing_section(scorer: Scorer, scores: Scores) -> Section:
    last = scores.stages[-1]
    own = [_usage(scores, Cell(stage, stage, "full_pool")) for stage in scores.stages]
    final = [_usage(scores, Cell(last, stage, "full_pool")) for stage in scores.stages]
    draw_usage(own, final, scorer.run.report / "routing.png")
    note = (
        "Where each site sent held-out source tokens, site by expert, right after the stage and at the end."
    )
    return Section("Routing", note, [html_picture("routing.png", "routing heat-map, site by expert")])


def _usage(scores: Scores, cell: Cell) -> Usage:
    measured = scores.cells[cell]
    return Usage(cell.task, measured.sites, measured.experts, measured.usage)


def _facts_section(run: RunReader) -> Section:
    settings = run.settings
    rows: dict[str, list[object]] = {
        "seed of training data": [settings.data.seed],
        "seed of held-out data and noise": [settings.data.held_out_seed],
        "sampling steps": [settings.sampling.steps],
        "base": [settings.base.path],
        "Python": [platform.python_version()],
        **{package: [_version(package)] for package in PACKAGES},
    }
    config = html_details(CONFIG, settings.to_yaml())
    return Section("Run", "", [html_table(["", ""], rows), config])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

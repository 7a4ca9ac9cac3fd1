"""Which cells the tables are made of, and what follows from them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.cologen.report.cells import Cell, Conditions, Measurement
from recipes.cologen.report.scores import Scores, all_cells, task_cells

TASKS = ("inpainting", "grounding", "control", "customization", "editing")


def measured(score: float) -> Measurement:
    asked = Conditions(
        n=1, seed=0, steps=1, source_timestep="zero", guidance=1.0, held_out="None", examples="e", weights="x"
    )
    return Measurement(
        conditions=asked,
        score=score,
        exact=True,
        by_kind={},
        values=(score,),
        sites=(),
        experts=(),
        usage=(),
        shown=(0,),
    )


@given(finished=st.integers(1, 5))
def test_every_table_and_score_finds_its_cells(finished: int) -> None:
    cells = all_cells(TASKS, TASKS[:finished])
    assert len(cells) == len(set(cells))
    numbers = {cell: float(number) for number, cell in enumerate(cells)}
    scores = Scores(TASKS, TASKS[:finished], {cell: measured(value) for cell, value in numbers.items()})
    full, as_of = scores.table("full_pool"), scores.table("as_of")
    assert list(full) == list(as_of) == list(TASKS[:finished])
    assert all(tuple(row) == TASKS for row in (*full.values(), *as_of.values()))
    assert scores.final_full_pool == {stage: full[TASKS[finished - 1]][stage] for stage in TASKS[:finished]}
    assert scores.after_own_stage == {stage: full[stage][stage] for stage in TASKS[:finished]}
    used = {value for table in (full, as_of) for row in table.values() for value in row.values()}
    used |= {*scores.final_as_of.values(), *scores.experts_off.values()}
    assert used == set(numbers.values())  # nothing is measured that nobody reads
    for stage, row in as_of.items():
        for task in TASKS:  # as_of differs only where a later expert is in the pool
            later = TASKS.index(task) < TASKS.index(stage)
            assert (row[task] == full[stage][task]) != later


def test_forgetting_is_the_difference_of_measured_scores() -> None:
    values = {cell: measured(0.5) for cell in all_cells(TASKS, TASKS[:2])}
    values[Cell("inpainting", "inpainting", "full_pool")] = measured(0.9)
    values[Cell("grounding", "inpainting", "as_of")] = measured(0.9)
    values[Cell("grounding", "inpainting", "full_pool")] = measured(0.3)
    scores = Scores(TASKS, TASKS[:2], values)
    assert scores.forgetting("as_of") == {"inpainting": 0.0, "grounding": 0.0}
    assert scores.forgetting("full_pool") == {"inpainting": pytest.approx(0.6), "grounding": 0.0}


def test_a_tasks_cells_are_among_all_cells() -> None:
    for task in TASKS:
        assert set(task_cells(task, TASKS)) <= set(all_cells(TASKS, TASKS))

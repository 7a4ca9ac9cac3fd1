"""The five stages are the paper's, and a selection of stages is what it says."""

import pytest

from recipes.cologen.data.views import VIEWS
from recipes.cologen.stages import COLOGEN_STAGES, UnknownStageError, select_stages

NAMES = tuple(COLOGEN_STAGES)


def test_every_stage_has_the_view_of_its_name_and_the_paper_order():
    assert tuple(VIEWS) == NAMES


def test_rows_are_those_of_table_1():
    iterations = [stage.steps for stage in COLOGEN_STAGES.values()]
    assert iterations == [200_000, 200_000, 400_000, 50_000, 200_000]
    assert [stage.batch_size for stage in COLOGEN_STAGES.values()] == [256, 256, 128, 128, 128]
    gates = [(stage.rho, stage.alpha) for stage in COLOGEN_STAGES.values()]
    assert gates == [(1.0, 0.0)] + [(0.8, 0.5)] * 4


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("all", NAMES),
        ("control", ("control",)),
        ("grounding..customization", ("grounding", "control", "customization")),
        ("..grounding", ("inpainting", "grounding")),
        ("customization..", ("customization", "editing")),
        ("editing..editing", ("editing",)),
    ],
)
def test_selection(wanted, expected):
    assert select_stages(wanted, NAMES) == expected


def test_unknown_stage_names_the_nearest():
    with pytest.raises(UnknownStageError, match=r"'controll'.*Did you mean 'control'"):
        select_stages("controll", NAMES)
    with pytest.raises(UnknownStageError, match="Did you mean 'editing'"):
        select_stages("control..editting", NAMES)


def test_a_range_that_runs_backwards_is_turned_round_in_the_message():
    with pytest.raises(UnknownStageError, match=r"Write --stage grounding\.\.editing"):
        select_stages("editing..grounding", NAMES)

"""The committed result of the input benchmark is whole, and the data page says what it says."""

import json

import pytest
from pydantic import ValidationError

from benchmarks.input import AMOUNTS, share_of
from benchmarks.page import INPUT_PAGE, INPUT_RESULT, input_page
from benchmarks.schema import Result
from benchmarks.store import read
from recipes.cologen.stages import COLOGEN_STAGES


def test_the_committed_result_has_every_way_in_and_every_stage():
    result = read(INPUT_RESULT)
    ways = {(way.source, way.workers, way.cache) for way in result.pipelines}
    workers = AMOUNTS["full"].workers
    assert ways == {
        (source, number, cache)
        for source in ("folder", "parquet", "tar")
        for number in workers
        for cache in ("none", "full")
    }
    assert {(step.stage, step.workers) for step in result.shares} == {(name, 2) for name in COLOGEN_STAGES}
    assert result.set == "full" and not result.origin.changed
    assert {"torch", "diffusers", "prw", "python"} <= set(result.origin.versions)


def test_the_data_page_says_what_was_measured():
    text = INPUT_PAGE.read_text(encoding="utf-8")
    assert input_page(read(INPUT_RESULT), text) == text


@pytest.mark.parametrize(
    "change", [{"remark": "nice"}, {"rounds": 0}, {"pipelines": []}, {"load": [1.0]}, {"kind": "output"}]
)
def test_anything_else_is_refused(change):
    whole = json.loads(INPUT_RESULT.read_text(encoding="utf-8"))
    with pytest.raises(ValidationError):
        Result.model_validate({**whole, **change})


def test_what_is_outside_the_model_is_all_but_what_the_step_computes():
    row = {"all": 1.0, "step": 0.9, "waiting": 0.08, "preparing": 0.05}
    share = share_of("editing", 2, [row] * 5)
    assert share.outside == pytest.approx(0.15)
    assert share.rest_ms == pytest.approx(20) and share.step_ms == 1000

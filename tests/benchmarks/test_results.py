"""Committed results are whole, and docs/benchmarks.md says what they say and nothing else."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from benchmarks.report.found import RESULTS, Found, load
from benchmarks.report.page import PAGE, page
from benchmarks.report.plots import PLOTS
from benchmarks.report.verdicts import verdicts
from benchmarks.schema import Kind, Result, read, write

CPU = sorted(RESULTS.glob("*.json"))


@pytest.fixture(scope="module")
def found() -> Found:
    return load()


def test_there_are_committed_results() -> None:
    assert {read(path).kind for path in CPU} == set(get_args(Kind))


@pytest.mark.parametrize("path", CPU, ids=lambda path: path.stem)
def test_a_result_says_where_it_comes_from(path: Path) -> None:
    result = read(path)
    origin = result.origin
    assert path.stem == result.name
    assert {"torch", "peft", "transformers", "diffusers", "prw", "python"} <= set(origin.versions)
    assert origin.date.tzinfo is not None
    assert origin.machine.threads <= origin.machine.cores
    assert result.timed or result.kept or result.steps or result.drawn


@pytest.mark.parametrize("path", CPU, ids=lambda path: path.stem)
def test_a_timed_result_keeps_the_contract(path: Path) -> None:
    result = read(path)
    if result.kind != "memory":
        assert result.rounds >= 5
    if result.timed:
        assert result.timed[0].case == "two nn.Linear"
        assert result.timed[0].ratio == 1
        assert all(row.routed is not None for row in result.timed if row.case.startswith("prw"))


def test_routing_was_as_even_as_it_should_be(found: Found) -> None:
    for passes in ("forward", "training"):
        for row in found.pools(passes):
            at, routed = row.where, row.routed
            assert routed is not None
            if at.granularity == "sample":
                assert routed.newest >= 1 / max(at.experts, at.batch)
            elif at.tokens >= 32 * at.experts:
                assert 0.5 / at.experts < routed.least <= routed.most < 2 / at.experts or at.experts == 1


@pytest.mark.parametrize(
    "change",
    [
        {"remark": "nice"},
        {"rounds": 0},
        {"kind": "guess"},
        {"name": "Grid 1"},
    ],
)
def test_anything_else_is_refused(change: dict[str, object]) -> None:
    whole = json.loads(CPU[0].read_text(encoding="utf-8"))
    Result.model_validate(whole)
    with pytest.raises(ValidationError):
        Result.model_validate({**whole, **change})


@pytest.mark.parametrize("change", [{"commit": "HEAD"}, {"code": ""}, {"date": "yesterday"}, {"seed": None}])
def test_an_unclear_origin_is_refused(change: dict[str, object]) -> None:
    whole = json.loads(CPU[0].read_text(encoding="utf-8"))
    with pytest.raises(ValidationError):
        Result.model_validate({**whole, "origin": {**whole["origin"], **change}})


def test_a_result_survives_writing(tmp_path: Path) -> None:
    for path in CPU:
        result = read(path)
        assert read(write(result, tmp_path)) == result


def test_the_page_is_what_the_results_say(found: Found) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(found), "run scripts/benchmark_report"


def test_the_page_shows_every_verdict_and_every_plot(found: Found) -> None:
    text = PAGE.read_text(encoding="utf-8")
    judged = verdicts(found)
    assert len(judged) == 25
    for verdict in judged:
        assert f"| {verdict.target} | {verdict.measured} | {verdict.word} |" in text
        if verdict.met is False:
            assert text.index(verdict.target) < text.index("| target |"), "losses are said before the tables"
    shown = set(re.findall(r"assets/(benchmarks-[a-z-]+\.png)", text))
    assert shown == set(PLOTS)


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_there_and_drawn_alike_twice(name: str, found: Found, tmp_path: Path) -> None:
    assert (PAGE.parent / "assets" / name).exists()
    PLOTS[name](found, tmp_path / "one.png")
    PLOTS[name](found, tmp_path / "two.png")
    drawn = (tmp_path / "one.png").read_bytes()
    assert drawn == (tmp_path / "two.png").read_bytes()

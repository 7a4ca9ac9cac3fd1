"""docs/benchmarks.md and its plots say what the results say and nothing else."""

import re
from pathlib import Path

import pytest

from benchmarks.cases import at
from benchmarks.page import NONE_YET, PAGE, gpu_table, page
from benchmarks.plots import PLOTS
from benchmarks.report import GPU_TARGETS, Found, load, verdicts
from benchmarks.schema import Result, Row
from benchmarks.store import origin
from benchmarks.timing import Device


@pytest.fixture(scope="module")
def found() -> Found:
    return load()


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
def test_a_plot_is_there_and_made_alike_twice(name: str, found: Found, tmp_path: Path) -> None:
    assert (PAGE.parent / "assets" / name).exists()
    PLOTS[name](found, tmp_path / "one.png")
    PLOTS[name](found, tmp_path / "two.png")
    made = (tmp_path / "one.png").read_bytes()
    assert made == (tmp_path / "two.png").read_bytes()


def test_without_a_gpus_result_every_target_says_so() -> None:
    assert gpu_table([]).count(NONE_YET) == len(GPU_TARGETS)


def test_a_gpus_result_is_judged_on_the_page() -> None:
    times = {"median_ms": 0.3, "iqr_ms": 0.001, "ratio": 1.5, "ratio_iqr": 0.01}
    point = at(4096, 3072, 128, 8, dtype="bfloat16")
    row = Row(case="prw", point=point, launch="graph", cache="cold", **times)
    here = origin(Device())
    here = here.model_copy(update={"machine": here.machine.model_copy(update={"device": "NVIDIA H100"})})
    result = Result(
        kind="kernels", name="k", set="full", origin=here, passes="forward", rounds=30, times=(row,)
    )
    text = gpu_table([[result]])
    assert f"NVIDIA H100, {here.commit[:9]}" in text
    (line,) = [line for line in text.splitlines() if "r = 128, N = 8 |" in line]
    assert line.endswith("| 1.500 (N=8) **not met** |")
    assert NONE_YET not in text

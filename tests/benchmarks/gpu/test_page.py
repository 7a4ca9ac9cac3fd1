"""What the page of benchmarks says of GPUs: nothing without a result, and then what the results say."""

from pathlib import Path

import pytest

from benchmarks.gpu.device import Rehearsal
from benchmarks.gpu.schema import At, GpuResult, Group, Row
from benchmarks.gpu.store import started, write
from benchmarks.gpu_model import GPU_TARGETS
from benchmarks.report.gpu import NONE_YET, body, committed


@pytest.fixture
def result() -> GpuResult:
    """A made-up result of one row."""
    at = At(tokens=4096, width=3072, rank=128, experts=8)
    row = Row(
        case="auto", at=at, passes="forward", launch="graph", cache="cold", median_us=300, iqr_us=1,
        repeats_us=(299, 301), ratio=1.5, ratio_iqr=0.01,
    )  # fmt: skip
    group = Group(name="kernels", seconds=1, rows=(row,))
    empty = started(Rehearsal(), "rehearsal")
    origin = empty.origin.model_copy(update={"changed": False})
    return empty.model_copy(
        update={
            "device": "NVIDIA H100",
            "mode": "full",
            "finished": True,
            "origin": origin,
            "groups": (group,),
        }
    )


def test_without_a_result_every_target_says_so() -> None:
    assert body([]).count(NONE_YET) == len(GPU_TARGETS)


def test_a_committed_result_is_judged_on_the_page(result: GpuResult, tmp_path: Path) -> None:
    write(result, tmp_path / "gpu-nvidia-h100.json")
    (found,) = committed(tmp_path)
    assert found == result
    text = body([found])
    assert f"NVIDIA H100, {result.origin.commit[:9]}" in text
    (line,) = [line for line in text.splitlines() if "r = 128, N = 8 |" in line]
    assert line.endswith("| 1.500 (N=8) **not met** |")
    assert NONE_YET not in text


def test_a_page_is_not_written_from_half_a_run(result: GpuResult, tmp_path: Path) -> None:
    write(result.model_copy(update={"finished": False}), tmp_path / "gpu-nvidia-h100.json")
    with pytest.raises(ValueError, match="not a whole run"):
        committed(tmp_path)

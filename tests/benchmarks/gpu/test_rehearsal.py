"""The whole command for a GPU machine, rehearsed on the CPU: what it writes, resumes, refuses and reports."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.cases import tasks
from benchmarks.gpu.device import REHEARSAL
from benchmarks.gpu.schema import GpuResult, read, read_committed
from benchmarks.gpu.store import RESULTS, RefusedError, write


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GpuResult]:
    """One rehearsal for all tests of this file: cut short by its budget, then taken to its end."""
    path = tmp_path_factory.mktemp("gpu") / "result.json"
    assert command.main(["--rehearse", "--output", str(path), "--budget", "0.001"]) == command.NO_NUMBERS
    cut = read(path)
    assert not cut.finished
    assert list(cut.left) == [task.name for task in tasks("rehearsal")]
    assert command.main(["--rehearse", "--output", str(path)]) == 0
    return path, read(path)


def test_everything_on_the_list_was_measured(rehearsed: tuple[Path, GpuResult]) -> None:
    _, result = rehearsed
    assert result.finished
    assert result.device == REHEARSAL
    assert [group.name for group in result.groups] == [task.name for task in tasks("rehearsal")]
    known = {"MixLoRA-style loop, recorded"}
    assert {one.case for group in result.groups for one in group.failures} <= known


def test_right_kernels_were_timed_and_the_one_that_cannot_run_here_was_not(
    rehearsed: tuple[Path, GpuResult],
) -> None:
    _, result = rehearsed
    assert {check.kernel for check in result.checks() if check.passed is False} <= {"triton"}
    timed = {row.case for row in result.rows()}
    assert {"dense", "grouped", "auto", "prw", "PEFT LoRA, float32 adapters", "PEFT Arrow"} <= timed
    assert not {"triton", "prw triton"} & timed


def test_every_point_has_every_way_and_is_beside_the_plain_projections(
    rehearsed: tuple[Path, GpuResult],
) -> None:
    _, result = rehearsed
    for group in result.groups:
        plain = [row for row in group.rows if row.case == "two nn.Linear"]
        assert all(row.ratio == 1 and row.marginal is None for row in plain)
        assert len({(row.launch, row.cache) for row in group.rows}) in (0, 4)
    routed = [row for row in result.rows() if row.case == "dense"]
    assert all(row.floor_us and row.unfused_us and row.floor_us <= row.unfused_us for row in routed)
    assert {row.at.routing for row in routed} == {"uniform", "90/10", "all to one", "half empty", "blobs"}
    assert {row.at.granularity for row in routed} == {"token", "sample"}


def test_predictions_memory_and_whole_steps_are_there(rehearsed: tuple[Path, GpuResult]) -> None:
    _, result = rehearsed
    assert [probe.name for group in result.groups for probe in group.probes] == [f"H{n}" for n in range(1, 9)]
    peaks = [peak for group in result.groups for peak in group.peaks]
    assert all(peak.peak_mib > 0 for peak in peaks)
    assert {step.what for group in result.groups for step in group.steps} == {
        "denoising step",
        "training step",
    }


def test_a_second_run_measures_nothing_and_reports_the_same(
    rehearsed: tuple[Path, GpuResult], capsys: pytest.CaptureFixture[str]
) -> None:
    path, result = rehearsed
    capsys.readouterr()
    assert command.main(["--rehearse", "--output", str(path)]) == 0
    assert read(path) == result
    said = capsys.readouterr().out
    for title in (
        "Correctness",
        "Ceilings",
        "Times",
        "Peers",
        "FLUX steps",
        "Activation memory",
        "Targets",
        "Predictions",
    ):
        assert f"\n{title}" in said
    assert "Left for another run" not in said


def test_other_code_is_not_mixed_in_or_overwritten(rehearsed: tuple[Path, GpuResult], tmp_path: Path) -> None:
    _, result = rehearsed
    path = tmp_path / "other.json"
    write(result.model_copy(update={"harness": "0" * 16}), path)
    before = path.read_bytes()
    assert command.main(["--rehearse", "--output", str(path)]) == command.USAGE
    assert path.read_bytes() == before


def test_a_rehearsal_is_no_result(rehearsed: tuple[Path, GpuResult]) -> None:
    path, result = rehearsed
    with pytest.raises(ValueError, match="rehearsal"):
        read_committed(path)
    with pytest.raises(RefusedError, match="does not belong"):
        write(result, RESULTS / "gpu-rehearsal.json")
    assert not (RESULTS / "gpu-rehearsal.json").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"finished": False}, "not a whole run"),
        ({"mode": "quick"}, "not a whole run"),
        ({"changed": True}, "differ"),
    ],
)
def test_only_a_whole_run_on_committed_code_is_published(
    rehearsed: tuple[Path, GpuResult], tmp_path: Path, change: dict[str, object], words: str
) -> None:
    _, result = rehearsed
    whole = json.loads(result.model_dump_json()) | {"device": "NVIDIA H100", "mode": "full", "finished": True}
    whole["origin"]["changed"] = False
    path = tmp_path / "gpu-h100.json"
    path.write_text(json.dumps(whole), encoding="utf-8")
    read_committed(path)
    if "changed" in change:
        whole["origin"] |= change
    else:
        whole |= change
    path.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        read_committed(path)


def test_committed_results_of_gpus_are_whole() -> None:
    """There may be none yet; the tests above show that anything else than a whole run is refused."""
    for path in sorted(RESULTS.glob("gpu-*.json")):
        read_committed(path)


def test_without_cuda_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 2
    said = capsys.readouterr()
    assert "needs a CUDA device" in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--quick", "--rehearse"], "one of them"), (["--rehearse", "--only", "nothing"], "fits no group")],
)
def test_what_cannot_be_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_kernel_forced_from_outside_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRW_KERNEL", "dense")
    assert command.main(["--rehearse"]) == 2
    assert "PRW_KERNEL" in capsys.readouterr().err


@pytest.mark.parametrize("budget", ["0", "-1", "soon", "nan"])
def test_a_budget_is_a_positive_number(budget: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--budget", budget])
    assert stopped.value.code == 2


def test_the_list_is_printed_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [task.name for task in tasks("full")]

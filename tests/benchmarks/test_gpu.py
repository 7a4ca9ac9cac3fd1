"""The whole command for a GPU machine, rehearsed on the CPU: what it writes, resumes, refuses and reports."""

import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu as command
from benchmarks import run as running
from benchmarks.baselines import build
from benchmarks.cases import GPU_KERNELS, LORA, PLAIN, Group, at, gpu_groups
from benchmarks.checks import CHECKS, LOST
from benchmarks.gpu import GpuRun
from benchmarks.run import measure
from benchmarks.schema import Check, Result
from benchmarks.store import origin, read_all, write
from benchmarks.timing import DeviceLostError, Rehearsal

Rehearsed = tuple[Path, dict[str, Result]]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    """One rehearsal for all tests of this file: cut short by its budget, then taken to its end."""
    folder = tmp_path_factory.mktemp("gpu") / "results"
    assert command.main(["--rehearse", "--output", str(folder), "--budget", "1e-9"]) == command.NO_NUMBERS
    assert not folder.exists()
    assert command.main(["--rehearse", "--output", str(folder)]) == 0
    return folder, {result.name: result for result in read_all(folder)}


def test_everything_on_the_list_was_measured(rehearsed: Rehearsed) -> None:
    _, results = rehearsed
    assert set(results) == {group.name for group in gpu_groups("rehearsal")}
    assert {result.origin.machine.device for result in results.values()} == {Rehearsal.name}
    assert [one for result in results.values() for one in result.failures] == []


def test_right_kernels_were_timed_and_the_one_that_cannot_run_here_was_not(rehearsed: Rehearsed) -> None:
    _, results = rehearsed
    failed = {one.kernel for result in results.values() for one in result.checks if one.passed is False}
    assert failed <= {"triton"}
    timed = {row.case for result in results.values() for row in result.times}
    assert {"prw dense", "prw grouped", "prw", "PEFT LoRA, float32 adapters", "PEFT Arrow"} <= timed
    assert "prw triton" not in timed


def test_every_case_is_a_whole_model_beside_the_plain_projections_in_every_way(rehearsed: Rehearsed) -> None:
    _, results = rehearsed
    timed = [result for result in results.values() if result.times]
    for result in timed:
        assert len({(row.launch, row.cache) for row in result.times}) == 4
        assert all(row.ratio == 1 for row in result.times if row.case == PLAIN)
    rows = [row for result in timed for row in result.times]
    pools = [row for row in rows if row.case.startswith("prw")]
    assert all(row.floor and row.routed for row in pools), "the routing was recorded through the pool"
    assert {row.point.routing for row in pools} == {"uniform", "90/10", "all to one", "half empty", "blobs"}
    assert {row.point.granularity for row in pools} == {"token", "sample"}
    loop = {row.launch for row in rows if row.case == "MixLoRA-style loop"}
    assert loop == {"eager"}, "what waits for the device by its nature is never recorded"


def test_ceilings_memory_and_whole_steps_are_there(rehearsed: Rehearsed) -> None:
    _, results = rehearsed
    assert all(row.peak_mib > 0 for row in results["memory"].memory)
    assert {one.tokens for one in results["ceilings"].ceilings} == {32, 64, 96}
    steps = {step.what for result in results.values() for step in result.steps}
    assert steps == {"denoising step", "training step"}


def test_a_second_run_measures_nothing_and_judges_the_same(
    rehearsed: Rehearsed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, results = rehearsed
    capsys.readouterr()
    monkeypatch.setattr(command, "measure", None)
    assert command.main(["--rehearse", "--output", str(folder)]) == 0
    assert {result.name: result for result in read_all(folder)} == results
    assert "\nTargets\n" in capsys.readouterr().out


def test_a_result_of_other_code_is_measured_again(rehearsed: Rehearsed, tmp_path: Path) -> None:
    _, results = rehearsed
    found = results["ceilings"]
    other = found.model_copy(update={"origin": found.origin.model_copy(update={"code": "0" * 16})})
    write(other, tmp_path)
    groups = [group for group in gpu_groups("rehearsal") if group.name == "ceilings"]
    GpuRun(Rehearsal(), "rehearsal", tmp_path).go_on(groups, time.time() + 60)
    (again,) = read_all(tmp_path)
    assert again.origin.code == found.origin.code


def checked_kernels(passed: bool = True) -> Result:
    """Checks of every kernel."""
    found = [Check(kernel=kernel, check=name, passed=passed) for kernel in GPU_KERNELS for name in CHECKS]
    here = origin(Rehearsal())
    return Result(kind="checks", name="checks", set="rehearsal", origin=here, rounds=1, checks=found)


def test_a_kernel_that_is_not_right_is_not_timed(tmp_path: Path) -> None:
    point = at(32, 64, 8, 3, dtype="bfloat16")
    for passed, wanted in ((True, [True, True, True, True]), (False, [True, False, False, True])):
        run = GpuRun(Rehearsal(), "rehearsal", tmp_path, [checked_kernels(passed)])
        assert [run.is_right(case, point) for case in (PLAIN, "prw", "prw triton", "PEFT Arrow")] == wanted


def test_a_whole_model_leaves_out_pools_whose_kernel_is_not_right(tmp_path: Path) -> None:
    (group, *_) = (group for group in gpu_groups("rehearsal") if group.kind == "flux")
    result = GpuRun(Rehearsal(), "rehearsal", tmp_path, [checked_kernels(passed=False)]).measured(group)
    assert [step.case for step in result.steps] == ["plain FLUX", LORA]


def test_a_lost_device_is_written_down_and_its_kernel_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loses(*_: object) -> Result:
        raise DeviceLostError("prw triton, T=64 d=64 r=24 N=1 token")

    monkeypatch.setattr(command, "measure", loses)
    run = GpuRun(Rehearsal(), "rehearsal", tmp_path, [checked_kernels()])
    groups = [group for group in gpu_groups("rehearsal") if group.kind == "kernels"]
    with pytest.raises(DeviceLostError):
        run.go_on(groups, time.time() + 60)
    (left,) = read_all(tmp_path)
    assert left.name == groups[0].name
    assert left.failures[0].why == f"{LOST}{left.name}"
    assert GpuRun(Rehearsal(), "rehearsal", tmp_path, [checked_kernels(), left]).allowed() == [
        "dense",
        "grouped",
    ]


def test_after_a_lost_device_the_command_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loses(*_: object) -> Result:
        raise DeviceLostError("triton")

    monkeypatch.setattr(command, "measure", loses)
    assert command.main(["--rehearse", "--output", str(tmp_path / "lost")]) == command.LOST_DEVICE
    assert "the same command goes on" in capsys.readouterr().out


def test_a_case_without_memory_is_written_down_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(name: str, *arguments: object) -> object:
        if name == LORA:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return build(name, *arguments)

    monkeypatch.setattr(running, "build", greedy)
    point = at(16, 16, 4, 1, dtype="bfloat16")
    group = Group(
        "peers", "p", cases=((PLAIN, at(16, 16, dtype="bfloat16")), (LORA, point), ("prw", point)), rounds=1
    )
    result = measure(Rehearsal(), group, "rehearsal")
    assert {row.case for row in result.times} == {PLAIN, "prw"}
    assert [one.point for one in result.failures] == [point]
    assert "OutOfMemoryError" in result.failures[0].why


def test_a_group_whose_package_is_missing_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(running, "import_module", missing)
    (group, *_) = (group for group in gpu_groups("rehearsal") if group.kind == "flux")
    result = GpuRun(Rehearsal(), "rehearsal", tmp_path).measured(group)
    assert "no benchmarks.flux" in result.failures[0].why


def test_without_cuda_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == command.USAGE
    said = capsys.readouterr()
    assert "needs a CUDA device" in said.err
    assert said.out == ""


def test_an_unknown_group_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--rehearse", "--only", "nothing"]) == command.USAGE
    assert "fits no group" in capsys.readouterr().err


def test_only_what_was_asked_for_is_measured_after_checks_and_ceilings() -> None:
    names = [group.name for group in command.groups_of("flux, memory", "full")]
    assert names[:4] == ["checks-dense", "checks-grouped", "checks-triton", "ceilings"]
    assert all("flux" in name or name == "memory" for name in names[4:])


def test_a_kernel_forced_from_outside_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRW_KERNEL", "dense")
    assert command.main(["--rehearse"]) == command.USAGE
    assert "PRW_KERNEL" in capsys.readouterr().err


@pytest.mark.parametrize("budget", ["0", "-1", "soon", "nan"])
def test_a_budget_is_a_positive_number(budget: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--budget", budget])
    assert stopped.value.code == 2


def test_the_list_is_printed_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [group.name for group in gpu_groups("full")]

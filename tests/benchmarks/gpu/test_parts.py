"""The parts of the GPU benchmark that need no GPU: what fails, what is lost, floors, crossings, targets."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import checks, runner, timing
from benchmarks.gpu.cases import ROUTINGS, SIZES, large_check, small_check, tasks
from benchmarks.gpu.checks import CHECKS, Bench, checked, may_be_timed
from benchmarks.gpu.clock import measured, prepared
from benchmarks.gpu.crossings import crossing, threshold
from benchmarks.gpu.device import DeviceLostError, Rehearsal
from benchmarks.gpu.floors import floors
from benchmarks.gpu.problem import drawn_ids, problem
from benchmarks.gpu.schema import At, Ceiling, Check, GpuResult, Group, Row
from benchmarks.gpu.store import read, started
from benchmarks.gpu.targets import MEASURES, verdicts
from benchmarks.gpu_model import GPU_TARGETS
from benchmarks.measuring import Case

AT = At(tokens=4096, width=3072, rank=128, experts=8)
H100 = Ceiling(tokens=4096, width=3072, flops_per_s=798e12, bytes_per_s=3.0e12)


class Stubborn(Rehearsal):
    """A device on which waiting is an error, and recording counts."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded = 0

    @contextmanager
    def unsynchronized(self):
        self.strict = True
        try:
            yield
        finally:
            self.strict = False

    def captured(self, run):
        self.recorded += 1
        return super().captured(run)


def test_what_waits_for_the_device_is_never_recorded() -> None:
    device = Stubborn()
    device.strict = False

    def waits() -> None:
        if device.strict:
            raise RuntimeError("called a synchronizing CUDA operation")

    candidate = prepared(device, Case(waits))
    assert (candidate.replay, device.recorded) == (None, 0)
    assert "synchronizing" in candidate.why_not
    assert {one.way[0] for one in measured(device, {"waits": candidate}, 2)} == {"eager"}
    assert prepared(device, Case(lambda: None)).replay is not None
    assert device.recorded == 1


def test_cases_take_turns_and_are_timed_as_often_as_asked() -> None:
    device, seen = Rehearsal(), []
    cases = {name: prepared(device, Case(lambda name=name: seen.append(name))) for name in "ab"}
    seen.clear()
    times = list(measured(device, cases, 3, [("graph", "cold")]))
    assert [set(seen[at : at + 2]) for at in range(0, 12, 2)] == [{"a", "b"}] * 6
    assert seen[0::2].count("a") not in (0, 6), "not always in the same order"
    assert [len(one.all) for one in times] == [6, 6]


def no_memory() -> Case:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_case_without_memory_is_written_down_and_the_others_go_on() -> None:
    found = timing.Prepared()
    found.add(Rehearsal(), "greedy", AT, no_memory)
    found.add(Rehearsal(), "modest", AT, lambda: Case(lambda: None))
    assert list(found.candidates) == ["modest"]
    assert [(one.case, one.at) for one in found.failures] == [("greedy", AT)]
    assert "OutOfMemoryError" in found.failures[0].why


def test_a_peer_whose_package_is_missing_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(timing, "import_module", missing)
    rows, failures = timing.peer_rows(Rehearsal(), AT, "forward", ["PEFT Arrow"], H100, 1)
    assert rows == []
    assert [one.case for one in failures] == ["two nn.Linear", "PEFT Arrow"]
    assert "no benchmarks.peers" in failures[0].why


@pytest.fixture
def bench() -> Bench:
    sizes = SIZES["rehearsal"]
    return Bench(Rehearsal(), small_check(sizes), large_check(sizes), inductor=False)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda outs, given: (outs[0], outs[1] * 1.01),
        lambda outs, given: tuple(out.roll(1, 0) for out in outs),
        lambda outs, given: given.plain(),
        lambda outs, given: tuple(out * float("nan") for out in outs),
        lambda outs, given: tuple(out.detach().requires_grad_() for out in outs),
    ],
    ids=["a hundredth too much", "other rows", "no experts", "not a number", "no gradients"],
)
def test_a_wrong_kernel_fails_and_is_not_timed(bench: Bench, monkeypatch: pytest.MonkeyPatch, spoil) -> None:
    right = checks.Problem.routed

    def routed(given, kernel):
        outs = right(given, "dense" if kernel == "wrong" else kernel)
        return spoil(outs, given) if kernel == "wrong" else outs

    monkeypatch.setattr(checks.Problem, "routed", routed)
    monkeypatch.setattr(checks, "compiled_equals_eager", lambda *_: "")
    found = list(checked(bench, "wrong"))
    assert not may_be_timed("wrong", found)
    failed = {check.check for check in found if check.passed is False}
    assert {"float32 equals the reference", "bfloat16 no worse than PEFT's formula"} <= failed


def test_a_kernel_is_timed_only_after_its_checks() -> None:
    assert not may_be_timed("dense", [])
    found = [Check(kernel="dense", check=name, passed=True) for name in CHECKS]
    assert may_be_timed("dense", found)
    assert not may_be_timed("triton", found)
    refused = [one.model_copy(update={"passed": None}) if "float32" in one.check else one for one in found]
    assert may_be_timed("dense", refused)
    assert not may_be_timed("dense", found[1:])
    assert not may_be_timed("dense", [found[0].model_copy(update={"passed": False}), *found[1:]])


def rehearsal(tmp_path: Path, only: list[str]) -> runner.Runner:
    device = Rehearsal()
    result = started(device, "rehearsal")
    return runner.Runner(device, result, tmp_path / "r.json", 1e12, lambda _: None, only)


def test_a_lost_device_is_written_down_and_its_kernel_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [Check(kernel=kernel, check=name, passed=True) for kernel in runner.KERNELS for name in CHECKS]
    monkeypatch.setattr(runner, "checked", lambda _, kernel: [one for one in good if one.kernel == kernel])

    def loses(*_: object) -> None:
        raise DeviceLostError("triton")

    monkeypatch.setattr(runner, "kernel_rows", loses)
    run = rehearsal(tmp_path, ["kernels-t64-r24-forward"])
    with pytest.raises(DeviceLostError):
        run.run()
    left = read(tmp_path / "r.json")
    group = left.group("kernels-t64-r24-forward")
    assert group is not None
    assert group.failures[0].why.startswith(runner.LOST)
    run.result = left
    assert run.allowed() == ["dense", "grouped"]


def test_after_a_lost_device_the_command_goes_on_in_a_new_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = []
    monkeypatch.setattr(os, "execv", lambda *arguments: called.append(arguments))

    def loses(*_: object) -> GpuResult:
        raise DeviceLostError("triton")

    monkeypatch.setattr(command, "measure", loses)
    monkeypatch.setenv(command.RESTARTS, "0")
    monkeypatch.setenv(command.STARTED, "12.5")
    for _ in range(command.MOST_RESTARTS + 2):
        assert command.main(["--quick"]) == command.LOST
    assert called == [(sys.executable, [sys.executable, "-m", "benchmarks.gpu", "--quick"])] * 3
    assert os.environ[command.STARTED] == "12.5", "the budget counts from the first start"
    assert "again and again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("at", "passes", "wanted"),
    [
        (AT.model_copy(update={"rank": 0, "experts": 0}), "forward", 1.0),
        (AT, "forward", 1.0833),
        (AT.model_copy(update={"rank": 16}), "forward", 1.0104),
        (AT, "training", 1.0885),
    ],
)
def test_the_floor_is_what_arithmetic_allows_while_arithmetic_is_the_limit(at: At, passes, wanted) -> None:
    plain = at.model_copy(update={"rank": 0, "experts": 0})
    used = at.experts
    newest = 1 / used if used else 0.0
    fused, apart = floors(at, passes, H100, used, newest)
    base, _ = floors(plain, passes, H100, 0, 0.0)
    assert fused / base == pytest.approx(wanted, abs=1e-3)
    assert fused <= apart
    slow = H100.model_copy(update={"bytes_per_s": 1e9})
    assert floors(at, passes, slow, used, newest)[0] > fused


def test_kernels_cross_where_they_take_equally_long() -> None:
    dense = [(16, 1.0), (64, 2.0), (256, 4.0), (1024, 16.0)]
    assert crossing(dense, [(size, 4.0) for size, _ in dense]) == pytest.approx(256)
    assert 64 < crossing(dense, [(size, 3.0) for size, _ in dense]) < 256
    assert crossing(dense, [(size, 0.5) for size, _ in dense]) == 16, "no slower from the first point on"
    assert crossing(dense, [(size, 99.0) for size, _ in dense]) is None


def test_a_threshold_is_proposed_from_the_crossings() -> None:
    probe = threshold({"triton, r=16": 256.0, "triton, r=128": 400.0, "grouped, r=16": 900.0})
    assert probe.held is True
    assert "320, then triton" in probe.then
    assert threshold({}).held is None


def test_every_target_is_measured_and_judged() -> None:
    assert set(MEASURES) == {target.against for target in GPU_TARGETS}
    empty = started(Rehearsal(), "rehearsal")
    assert {verdict.met for verdict in verdicts(empty)} == {None}

    def row(case: str, experts: int, us: float, ratio: float, rank: int = 128) -> Row:
        at = AT.model_copy(update={"experts": experts, "rank": rank})
        return Row(
            case=case, at=at, passes="forward", launch="graph", cache="cold", median_us=us, iqr_us=0,
            repeats_us=(us, us), ratio=ratio, ratio_iqr=0,
        )  # fmt: skip

    rows = (
        row("auto", 1, 230, 1.18),
        row("auto", 8, 300, 1.5),
        row("prw", 8, 200, 1.2),
        row("PEFT Arrow", 8, 700, 4),
        row("auto", 1, 230, 1.1, rank=16),
        row("auto", 8, 260, 1.3, rank=16),
    )
    judged = {
        verdict.target.against: verdict
        for verdict in verdicts(empty.model_copy(update={"groups": (Group(name="g", seconds=1, rows=rows),)}))
    }
    assert judged["two nn.Linear, forward, r = 128, N = 1"].met is True
    assert judged["two nn.Linear, forward, r = 128, N = 8"].met is False
    worst = judged["two nn.Linear, forward, r = 16, N ≤ 8"]
    assert (worst.measured, worst.met) == ("1.300 (N=8)", False)
    assert judged["PEFT Arrow, N = 8"].met is True
    assert judged["PEFT Arrow, N = 8"].measured.startswith("3.500")


@pytest.mark.parametrize("routing", ROUTINGS)
def test_every_routing_sends_items_where_it_says(routing) -> None:
    ids = drawn_ids(routing, 4096, 8, torch.Generator().manual_seed(0))
    shares = ids.bincount(minlength=8) / len(ids)
    assert ids.shape == (4096,)
    if routing == "all to one":
        assert shares[7] == 1
    if routing == "90/10":
        assert 0.85 < shares[7] < 0.95
    if routing == "half empty":
        assert (shares[:4] == 0).all()
    if routing == "blobs":
        assert int((ids[1:] != ids[:-1]).sum()) < 16


def test_an_items_rows_are_consecutive_in_samples() -> None:
    given = problem(At(tokens=32, width=16, rank=4, experts=3, granularity="sample"), torch.device("cpu"))
    assert (given.ids.shape, given.tokens_per_item) == ((4,), 8)


def test_a_full_run_starts_with_checks_and_has_no_name_twice() -> None:
    for mode in ("full", "quick", "rehearsal"):
        names = [task.name for task in tasks(mode)]
        assert len(set(names)) == len(names)
        assert names[:4] == ["checks-dense", "checks-grouped", "checks-triton", "ceilings"]
    assert {task.name for task in tasks("quick")} < {task.name for task in tasks("full")}

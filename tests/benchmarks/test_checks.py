"""A wrong kernel is found, by every way of being wrong, and is not timed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import checks
from benchmarks.cases import Group, at, check_points
from benchmarks.checks import CHECKS, LOST, CheckSetup, checked, clear_input, may_be_timed, problem
from benchmarks.points import assignment_of
from benchmarks.schema import Check
from benchmarks.timing import DeviceLostError, Rehearsal


@pytest.fixture
def setup() -> CheckSetup:
    return CheckSetup(Rehearsal(), *check_points("rehearsal"), inductor=False)


@pytest.mark.parametrize("kernel", ["dense", "grouped", "reference"])
def test_a_right_kernel_passes_every_check_that_can_be_made_here(setup: CheckSetup, kernel: str) -> None:
    found = {check.check: check.passed for check in checked(setup, kernel)}
    assert found == dict.fromkeys(CHECKS, True) | {"more than 2^31 numbers": None}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda outs, given: (outs[0], outs[1] * 1.01),
        lambda outs, given: tuple(out.roll(1, 1) for out in outs),
        lambda outs, given: plain(given),
        lambda outs, given: tuple(out * float("nan") for out in outs),
        lambda outs, given: tuple(out.detach().requires_grad_() for out in outs),
    ],
    ids=["a hundredth too much", "other rows", "no experts", "not a number", "no gradients"],
)
def test_a_wrong_kernel_fails_and_is_not_timed(
    setup: CheckSetup, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., Any]
) -> None:
    right, made = checks.Problem.forward, checks.problem
    wrong: list[object] = []

    def make(point, device, kernel, *more, **options):
        given = made(point, device, "dense" if kernel == "wrong" else kernel, *more, **options)
        wrong.extend([given.model] if kernel == "wrong" else [])
        return given

    def forward(given):
        outs = right(given)
        return spoil(outs, given) if any(given.model is one for one in wrong) else outs

    monkeypatch.setattr(checks, "problem", make)
    monkeypatch.setattr(checks.Problem, "forward", forward)
    monkeypatch.setitem(CHECKS, "torch.compile(fullgraph=True)", (lambda *_: "", False))
    found = list(checked(setup, "wrong"))
    assert not may_be_timed("wrong", found)
    failed = {check.check for check in found if check.passed is False}
    assert {"float32 equals the reference", "bfloat16 no worse than PEFT's formula"} <= failed


def plain(given: checks.Problem) -> tuple[torch.Tensor, ...]:
    with given.weave.disabled():
        return tuple(given.model(given.hidden))


def test_a_kernel_is_timed_only_after_its_checks() -> None:
    assert not may_be_timed("dense", [])
    found = [Check(kernel="dense", check=name, passed=True) for name in CHECKS]
    assert may_be_timed("dense", found)
    assert not may_be_timed("triton", found)
    refused = [one.model_copy(update={"passed": None}) if "float32" in one.check else one for one in found]
    assert may_be_timed("dense", refused)
    assert not may_be_timed("dense", found[1:])
    assert not may_be_timed("dense", [found[0].model_copy(update={"passed": False}), *found[1:]])


def test_rounding_decides_nothing_in_the_routing_that_is_checked() -> None:
    point = at(64, 32, 4, 5)
    for kernel, dtype in (("reference", "float32"), ("dense", "bfloat16")):
        given = problem(point.but(dtype=dtype), Rehearsal(), kernel, seed=3)
        with given.weave.record() as routing:
            given.model(given.hidden)
        (decision,) = routing.all()
        top = decision.probabilities.sort(-1, descending=True).values
        assert (top[..., 0] / top[..., 1]).min() > 2
        shift = (decision.expert_ids - assignment_of(point)) % 5
        assert len(shift.unique()) == 1, "each item goes where it is meant to, in either dtype"


def test_other_seeds_route_otherwise() -> None:
    point = at(64, 32, 4, 5)
    one, two = (clear_input(point, torch.Generator().manual_seed(seed)) for seed in (17, 18))
    assert not torch.allclose(one, two)


def test_far_rows_are_compared_with_the_reference_on_them(
    setup: CheckSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "far_tokens", lambda width: 256)
    monkeypatch.setattr(setup.device, "free_bytes", lambda: 1 << 40)
    assert checks.far_rows(setup, "dense") == ""
    monkeypatch.setattr(checks, "errors", lambda got, wanted: {"out": 1.0, "grad": float("nan")})
    assert "out" in checks.far_rows(setup, "dense") and "grad" in checks.far_rows(setup, "dense")


def test_a_device_that_is_lost_within_the_checks_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def loses(setup, kernel):
        yield Check(kernel=kernel, check="float32 equals the reference", passed=True)
        raise DeviceLostError(kernel)

    monkeypatch.setattr(checks, "checked", loses)
    group = Group("checks", "checks-triton", cases=(("triton", at(4, 4)),))
    found = checks.checks(Rehearsal(), group, "rehearsal", [])
    assert [one.check for one in found["checks"]] == ["float32 equals the reference"]
    assert found["failures"][0].why == f"{LOST}float32 equals the reference"

"""Results: whole, strictly read, of a known origin; measured anew where the code is another."""

import json
import subprocess
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from benchmarks.cases import PLAIN, at, gpu_groups
from benchmarks.report import Found, load
from benchmarks.schema import Kind, Memory, Result
from benchmarks.store import CPU as FOLDER
from benchmarks.store import RESULTS, RefusedError, committed_gpus, done, git, origin, read, write
from benchmarks.timing import Device, Rehearsal

CPU = sorted(FOLDER.glob("*.json"))
GPU_KINDS = {"checks", "ceilings"}


@pytest.fixture(scope="module")
def found() -> Found:
    return load()


def test_there_are_committed_results() -> None:
    assert {read(path).kind for path in CPU} == set(get_args(Kind)) - GPU_KINDS


@pytest.mark.parametrize("path", CPU, ids=lambda path: path.stem)
def test_a_result_says_where_it_comes_from(path: Path) -> None:
    result = read(path)
    origin = result.origin
    assert path.stem == result.name
    assert {"torch", "peft", "transformers", "diffusers", "prw", "python"} <= set(origin.versions)
    assert origin.date.tzinfo is not None
    assert origin.machine.threads <= origin.machine.cores
    assert result.times or result.memory or result.steps or result.pictures or result.pipelines


@pytest.mark.parametrize("path", CPU, ids=lambda path: path.stem)
def test_a_timed_result_keeps_the_contract(path: Path) -> None:
    result = read(path)
    if result.kind != "memory":
        assert result.rounds >= 5
    if result.times:
        assert result.times[0].case == "two nn.Linear"
        assert result.times[0].ratio == 1
        assert all(row.routed is not None for row in result.times if row.case.startswith("prw"))


def test_routing_was_as_even_as_it_should_be(found: Found) -> None:
    for passes in ("forward", "training"):
        for row in found.pools(passes):
            at, routed = row.point, row.routed
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
        {"version": 1},
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


def test_a_result_of_other_code_is_measured_again(tmp_path: Path) -> None:
    kept = [Memory(case=PLAIN, point=at(4, 1), saved_mib=0, peak_mib=1)]
    here = origin(Device())
    result = Result(kind="memory", name="memory", set="full", origin=here, rounds=1, memory=kept)
    assert done(tmp_path, "memory", here, "full") is None
    write(result, tmp_path)
    assert done(tmp_path, "memory", here, "full") == result
    assert done(tmp_path, "memory", here, "default") is None
    older = here.model_copy(update={"code": "0" * 16})
    write(result.model_copy(update={"origin": older}), tmp_path)
    assert done(tmp_path, "memory", here, "full") is None
    (tmp_path / "memory.json").write_text("half of a", encoding="utf-8")
    assert done(tmp_path, "memory", here, "full") is None


def test_outside_a_clone_the_refusal_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(RefusedError, match="in a clone"):
        git("rev-parse", "HEAD")


def gpu_result(**changes: object) -> Result:
    """A made-up result of a GPU's whole list of one group."""
    here = origin(Device())
    machine = here.machine.model_copy(update={"device": changes.pop("device", "NVIDIA H100")})
    here = here.model_copy(update={"machine": machine, "changed": changes.pop("changed", False)})
    kept = [Memory(case=PLAIN, point=at(4, 1), saved_mib=0, peak_mib=1)]
    result = Result(kind="memory", name="memory", set="full", origin=here, rounds=1, memory=kept)
    return result.model_copy(update=changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "other"}, "not a whole run: memory"),
        ({"set": "default"}, "not a whole run: memory"),
        ({"changed": True}, "differ"),
        ({"device": "cpu rehearsal"}, "is a rehearsal"),
        ({"set": "rehearsal"}, "is a rehearsal"),
    ],
)
def test_only_a_whole_run_on_committed_code_is_published(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    folder = tmp_path / "gpu-nvidia-h100"
    whole = gpu_result()
    write(whole, folder)
    assert committed_gpus(["memory"], tmp_path) == [[whole]]
    (folder / "memory.json").unlink()
    write(gpu_result(**change), folder)
    with pytest.raises(ValueError, match=words):
        committed_gpus(["memory"], tmp_path)


def test_results_of_two_devices_are_not_mixed(tmp_path: Path) -> None:
    write(gpu_result(), tmp_path / "gpu-h100")
    write(gpu_result(name="other", device="NVIDIA A100"), tmp_path / "gpu-h100")
    with pytest.raises(ValueError, match="mixes"):
        committed_gpus(["memory", "other"], tmp_path)


def test_a_rehearsal_does_not_go_beside_the_committed_results() -> None:
    result = gpu_result(device=Rehearsal.name, set="rehearsal")
    with pytest.raises(RefusedError, match="does not belong"):
        write(result, RESULTS / "gpu-rehearsal")
    assert not (RESULTS / "gpu-rehearsal").exists()


def test_committed_results_of_gpus_are_whole() -> None:
    """There may be none yet; the tests above show that anything else than a whole run is refused."""
    committed_gpus([group.name for group in gpu_groups("full")])

"""The clock is fair, memory is counted whole, a CUDA device is asked in the right order (calls are faked)."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.timing import (
    FLUSH_TIMES,
    Case,
    Cuda,
    Device,
    DeviceLostError,
    Rehearsal,
    measured,
    paired,
    prepared,
    rounds_within,
    saved_bytes,
    spread,
)

GIB = 1 << 30


class Clockwork(Device):
    """A device on which the n-th run takes n seconds."""

    warm_ups = 0

    def __init__(self) -> None:
        self.marks = 0

    def mark(self) -> int:
        self.marks += 1
        return self.marks

    def seconds(self, start: int, stop: int) -> float:
        assert stop == start + 1
        return stop / 2


def test_cases_run_in_turn_and_keep_their_seconds() -> None:
    seen: list[str] = []
    device = Clockwork()
    cases = {
        name: prepared(
            device, Case(lambda name=name: seen.append(name), lambda name=name: seen.append("clear"))
        )
        for name in ("a", "b", "c")
    }
    seen.clear()
    times = measured(device, cases, rounds=20)
    assert seen[:120:2] == ["clear"] * 60
    ran = seen[1:120:2]
    rounds = [ran[first : first + 3] for first in range(0, 60, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert {one[0] for one in rounds} == {"a", "b", "c"}, "no case always comes first"
    for one in times:
        assert one.seconds == [second for second, which in enumerate(ran, start=1) if which == one.name]


def test_a_gpu_times_every_case_in_every_way() -> None:
    device, seen = Rehearsal(), []
    cases = {name: prepared(device, Case(lambda name=name: seen.append(name))) for name in "ab"}
    times = measured(device, cases, 3)
    assert {(one.name, one.way) for one in times} == {(name, way) for name in "ab" for way in device.ways}
    assert all(len(one.seconds) == 3 for one in times)


def test_rounds_fit_the_budget_but_are_never_fewer_than_five() -> None:
    device = Device()
    cases = {"a": prepared(device, Case(lambda: None))}
    assert rounds_within(device, cases, 0) == 1
    assert rounds_within(device, cases, 1e-12) == 5
    assert rounds_within(device, cases, 1000) == 25


def test_paired_ratios_do_not_see_a_machine_that_slows_down() -> None:
    base = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert paired([2 * one for one in base], base) == (2.0, 0.0)
    assert spread(base) == (3.0, 2.0)
    with pytest.raises(ValueError, match="zip"):
        paired([1.0], base)


def test_saved_memory_is_each_storage_once_without_parameters() -> None:
    layer, hidden = nn.Linear(8, 8), torch.randn(16, 8, requires_grad=True)

    def forward() -> torch.Tensor:
        halves = layer(hidden).chunk(2, dim=-1)  # two views of one storage
        return halves[0].square().sum() + halves[1].square().sum()

    floats = hidden.numel() + 16 * 8
    assert saved_bytes(forward, layer.parameters()) == 4 * floats
    assert saved_bytes(forward, ()) == 4 * (floats + layer.weight.numel())


def test_peak_memory_is_above_the_resting_level_and_counts_what_was_freed() -> None:
    resting = torch.ones(1000)

    def run() -> torch.Tensor:
        first = resting + 1
        second = first + 1
        del first
        return second + 1

    assert Device().peak_bytes(run) == pytest.approx(2 * 4000, abs=256)  # the allocator's own rounding


class Stubborn(Rehearsal):
    """A device on which waiting is an error, and recording counts."""

    def __init__(self) -> None:
        super().__init__()
        self.recordings = 0

    @contextmanager
    def waits_are_errors(self) -> Iterator[None]:
        self.strict = True
        try:
            yield
        finally:
            self.strict = False

    def recorded(self, run):
        self.recordings += 1
        return super().recorded(run)


def test_what_waits_for_the_device_is_never_recorded() -> None:
    device = Stubborn()
    device.strict = False

    def waits() -> None:
        if device.strict:
            raise RuntimeError("called a synchronizing CUDA operation")

    candidate = prepared(device, Case(waits))
    assert (candidate.replay, device.recordings) == (None, 0)
    assert "synchronizing" in candidate.why_not
    assert {one.way[0] for one in measured(device, {"waits": candidate}, 2)} == {"eager"}
    assert prepared(device, Case(lambda: None)).replay is not None
    assert device.recordings == 1


def test_a_device_that_answers_no_more_is_lost() -> None:
    class Dead(Device):
        def synchronize(self) -> None:
            raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(DeviceLostError, match="triton"):
        Dead().still_there("triton")


class Fake:
    """Stands for torch.cuda: writes down what is called."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.mode: object = 0
        self.current: object = "default stream"
        self.top = 5 * GIB

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, self.noting(name))
        facts = SimpleNamespace(
            name="NVIDIA Fake", L2_cache_size=1 << 10, major=9, minor=0, multi_processor_count=132,
            total_memory=80 * GIB,
        )  # fmt: skip
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: "own stream")
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "current", stream))
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: self.mode)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(self, "mode", mode))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2 * GIB)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: self.top)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60 * GIB, 80 * GIB))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=self.noting("replay")))
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        monkeypatch.setattr(torch, "randn", lambda words, device: torch.zeros(words))
        monkeypatch.setattr(torch, "empty", lambda size, device: torch.zeros(size))

    def noting(self, name: str):
        return lambda *_: self.calls.append(name)

    def graph(self, graph: object, stream: object):
        fake = self

        class Recording:
            def __enter__(self) -> None:
                fake.calls.append(("record on", stream))

            def __exit__(self, *_: object) -> None:
                fake.calls.append("recorded")

        return Recording()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    made.install(monkeypatch)
    return made


def test_everything_goes_to_one_stream_and_the_buffer_is_larger_than_the_cache(fake: Fake) -> None:
    device = Cuda()
    assert fake.current == "own stream"
    assert device.name == "NVIDIA Fake"
    assert device._buffer.nbytes == FLUSH_TIMES * (1 << 10)
    assert device.facts()["capability"] == "9.0"
    assert device.facts()["memory_mib"] == 80 * 1024


def test_a_run_is_recorded_on_the_stream_that_it_was_warmed_up_on(fake: Fake) -> None:
    device = Cuda()
    fake.calls.clear()
    replay = device.recorded(lambda: fake.calls.append("run"))
    assert fake.calls == ["synchronize", ("record on", "own stream"), "run", "recorded"]
    replay()
    assert fake.calls[-1] == "replay"


def test_waits_are_errors_only_inside_and_the_old_mode_comes_back(fake: Fake) -> None:
    device = Cuda()
    fake.mode = 1
    with pytest.raises(RuntimeError, match="waits"), device.waits_are_errors():
        assert fake.mode == "error"
        raise RuntimeError("waits")
    assert fake.mode == 1


def test_a_peak_is_counted_above_the_resting_level_and_after_a_reset(fake: Fake) -> None:
    device = Cuda()
    fake.calls.clear()
    assert device.peak_bytes(lambda: fake.calls.append("run")) == 3 * GIB
    assert fake.calls[-3:] == ["reset_peak_memory_stats", "run", "synchronize"]
    assert device.free_bytes() == 60 * GIB

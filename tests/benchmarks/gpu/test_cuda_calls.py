"""Which calls the CUDA device makes of torch, and in which order; the calls need a GPU and are faked."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import cuda
from benchmarks.gpu.cuda import Cuda

GIB = 1 << 30


class Fake:
    """Stands for torch.cuda: writes down what is called."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.mode: object = 0
        self.current: object = "default stream"
        self.top = 5 * GIB

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, self.noting(name))
        facts = SimpleNamespace(
            name="NVIDIA Fake", L2_cache_size=1 << 10, major=9, minor=0, multi_processor_count=132,
            total_memory=80 * GIB,
        )  # fmt: skip
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
    assert device._buffer.nbytes == cuda.FLUSH_TIMES * device.l2_bytes
    assert device.facts()["capability"] == "9.0"
    assert device.facts()["memory_mib"] == 80 * 1024


def test_a_run_is_recorded_on_the_stream_that_it_was_warmed_up_on(fake: Fake) -> None:
    device = Cuda()
    fake.calls.clear()
    replay = device.captured(lambda: fake.calls.append("run"))
    assert fake.calls == ["synchronize", ("record on", "own stream"), "run", "recorded"]
    replay()
    assert fake.calls[-1] == "replay"


def test_waits_are_errors_only_inside_and_the_old_mode_comes_back(fake: Fake) -> None:
    device = Cuda()
    fake.mode = 1
    with pytest.raises(RuntimeError, match="waits"), device.unsynchronized():
        assert fake.mode == "error"
        raise RuntimeError("waits")
    assert fake.mode == 1


def test_a_peak_is_counted_above_the_resting_level_and_after_a_reset(fake: Fake) -> None:
    device = Cuda()
    fake.calls.clear()
    assert device.peak_bytes(lambda: fake.calls.append("run")) == 3 * GIB
    assert fake.calls[-3:] == ["reset_peak_memory_stats", "run", "synchronize"]
    assert device.free_bytes() == 60 * GIB

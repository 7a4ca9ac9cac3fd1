"""A CUDA device: events, a cache flush, recorded graphs, refused synchronisation, peak memory."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.gpu.device import Device, Mark, Run, without_collecting

FLUSH_TIMES = 4
"""How many times the L2 cache is read through; once need not be enough, as its policy is not plain LRU."""
FALLBACK_L2 = 64 << 20


class Cuda(Device):
    """One CUDA device. All work goes to one stream of its own, captures included.

    Autograd runs a backward on the streams of its forward, and gradients of leaves on the stream where they
    were first seen: on one stream throughout, nothing of a capture can wait for work outside it.
    """

    def __init__(self, index: int = 0) -> None:
        """Take a device; the process keeps to it."""
        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(self.torch_device)
        properties = torch.cuda.get_device_properties(self.torch_device)
        self.name = properties.name
        self.l2_bytes = int(getattr(properties, "L2_cache_size", 0)) or FALLBACK_L2
        self._stream = torch.cuda.Stream(self.torch_device)
        torch.cuda.set_stream(self._stream)
        # Random, since memory full of zeros draws less power and lets the clock rise.
        words = FLUSH_TIMES * self.l2_bytes // 4
        self._buffer = torch.randn(words, device=self.torch_device)
        self._sum = torch.empty((), device=self.torch_device)

    def facts(self) -> dict[str, int | str]:
        properties = torch.cuda.get_device_properties(self.torch_device)
        return {
            "capability": f"{properties.major}.{properties.minor}",
            "processors": properties.multi_processor_count,
            "memory_mib": properties.total_memory >> 20,
            "l2_mib": self.l2_bytes >> 20,
            "cuda": str(torch.version.cuda),
            "index": self.torch_device.index or 0,
        }

    def mark(self) -> Mark:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def seconds(self, start: Mark, stop: Mark) -> float:
        return float(start.elapsed_time(stop)) / 1e3

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    def flush(self) -> None:
        # A read: written lines would have to go back to memory on the clock of what follows. It also takes
        # long enough for the host to have queued what follows, so that launches are not part of its time.
        torch.sum(self._buffer, 0, out=self._sum)

    def captured(self, run: Run) -> Run:
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with without_collecting(), torch.cuda.graph(graph, stream=self._stream):
            run()
        return graph.replay

    @contextmanager
    def unsynchronized(self) -> Iterator[None]:
        self.synchronize()
        before = torch.cuda.get_sync_debug_mode()
        try:
            set_sync_debug_mode("error")
            yield
        finally:
            set_sync_debug_mode(before)

    def peak_bytes(self, run: Run) -> int:
        self.release()
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        before = torch.cuda.memory_allocated(self.torch_device)
        run()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.torch_device) - before

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self.torch_device)[0])

    def release(self) -> None:
        gc.collect()
        self.synchronize()
        torch.cuda.empty_cache()


def set_sync_debug_mode(mode: int | str) -> None:
    """Set the mode without torch's notice that it does not yet detect every wait."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)

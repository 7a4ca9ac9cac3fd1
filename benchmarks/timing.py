"""Times cases side by side on a device: in turn, round by round; medians, and ratios within a round."""

from __future__ import annotations

import gc
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from benchmarks.schema import REHEARSAL, Cache, Launch

Run = Callable[[], Any]
Mark = Any  # a point in the device's time; only the device that made it can read it
Way = tuple[Launch, Cache]
MIB = 2**20
LEAST_ROUNDS, MOST_ROUNDS = 5, 25
FLUSH_TIMES = 4
"""How many times the L2 cache is read through; once need not be enough, as its policy is not plain LRU."""
FALLBACK_L2 = 64 << 20


class DeviceLostError(Exception):
    """The device answers no more in this process, as after a kernel that wrote where it must not."""


class Device:
    """Where things run and are timed; this one is the CPU."""

    torch_device = torch.device("cpu")
    name, dtype = "cpu", "float32"  # of the hardware; in which whole models are timed
    ways: tuple[Way, ...] = (("eager", "mixed"),)  # how a case is launched, and what is in the cache
    warm_ups = 2  # runs of a case before it is timed

    def facts(self) -> dict[str, int | str]:
        """Say what the hardware is, as far as it bears on the numbers and the CPU's name does not."""
        return {}

    def mark(self) -> Mark:
        """Mark now, in the order of the device's work."""
        return time.perf_counter()

    def seconds(self, start: Mark, stop: Mark) -> float:
        """Give the time between two marks that the device has passed."""
        return max(float(stop - start), 1e-9)

    def synchronize(self) -> None:
        """Wait until the device has done everything."""

    def flush(self) -> None:
        """Push everything out of the caches, without leaving anything there that has to be written back."""

    def recorded(self, run: Run) -> Run:
        """Record the launches of a run that has run before, and give what replays them on the same memory.

        Raises:
            RuntimeError: if it does what cannot be recorded.
        """
        return run

    def waits_are_errors(self) -> AbstractContextManager[None]:
        """Make every wait of the host for the device an error inside."""
        return nullcontext()

    def peak_bytes(self, run: Run) -> int:
        """Run, and give the most that was allocated at once above the level at the start."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
            run()
        events = enumerate(profiled.profiler.kineto_results.events())
        changes = sorted((one.start_ns(), at, one.nbytes()) for at, one in events if one.name() == "[memory]")
        return max(0, *accumulate(change for _, _, change in changes)) if changes else 0

    def free_bytes(self) -> int:
        """Give the memory that is left, where a check asks for it."""
        return 0

    def release(self) -> None:
        """Give back memory that nobody holds any more; on a CPU that is left to Python."""

    def still_there(self, name: str) -> None:
        """Give memory back, and see whether the device goes on after what was done last, which has a name.

        Raises:
            DeviceLostError: if it does not.
        """
        try:
            self.release()
            self.synchronize()
        except RuntimeError as error:
            raise DeviceLostError(name) from error


class Rehearsal(Device):
    """The CPU in the place of a GPU: the same calls, and numbers that mean nothing."""

    name, dtype = REHEARSAL, "bfloat16"
    ways: tuple[Way, ...] = (("graph", "cold"), ("graph", "warm"), ("eager", "cold"), ("eager", "warm"))


class Cuda(Device):
    """One CUDA device. All work goes to one stream of its own, recordings included.

    Autograd runs a backward on the streams of its forward, and gradients of leaves on the stream where they
    were first seen: on one stream throughout, nothing of a recording can wait for work outside it.
    """

    dtype, ways, warm_ups = Rehearsal.dtype, Rehearsal.ways, 3

    def __init__(self) -> None:
        self.torch_device = torch.device("cuda", torch.cuda.current_device())
        self._properties = torch.cuda.get_device_properties(self.torch_device)
        self.name = self._properties.name
        self._l2_bytes = int(getattr(self._properties, "L2_cache_size", 0)) or FALLBACK_L2
        self._stream = torch.cuda.Stream(self.torch_device)
        torch.cuda.set_stream(self._stream)
        # Random, since memory full of zeros draws less power and lets the clock rise.
        self._buffer = torch.randn(FLUSH_TIMES * self._l2_bytes // 4, device=self.torch_device)
        self._sum = torch.empty((), device=self.torch_device)

    def facts(self) -> dict[str, int | str]:
        return {
            "capability": f"{self._properties.major}.{self._properties.minor}",
            "processors": self._properties.multi_processor_count,
            "memory_mib": self._properties.total_memory >> 20,
            "l2_mib": self._l2_bytes >> 20,
            "cuda": str(torch.version.cuda),
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

    def recorded(self, run: Run) -> Run:
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with without_collecting(), torch.cuda.graph(graph, stream=self._stream):
            run()
        return graph.replay

    @contextmanager
    def waits_are_errors(self) -> Iterator[None]:
        self.synchronize()
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():  # torch's notice that it does not yet detect every wait
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

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


@contextmanager
def without_collecting() -> Iterator[None]:
    """Collect no garbage inside: it takes time, and may free a recording within another one."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def saved_bytes(forward: Run, parameters: Iterable[Tensor]) -> int:
    """Count what a forward keeps for its backward: each storage once, whole, those of parameters not.

    Tensors that a custom function keeps past `save_for_backward` are not seen; `peak_bytes` sees them.
    """
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            # Held until counted, so that no address is given out twice.
            kept[storage.data_ptr()] = storage.nbytes(), tensor.detach()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = forward()
    total = sum(size for size, _ in kept.values())
    del outputs
    return total


@dataclass(frozen=True)
class Case:
    """Something to time; `clear` undoes what a run leaves, before the next one, and is not timed."""

    run: Run
    clear: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Candidate:
    """A case that runs on this device; `replay` replays its recorded launches, or `why_not` says why not."""

    case: Case
    replay: Run | None = None
    why_not: str = ""

    def launched(self, launch: Launch) -> Run | None:
        """Give what is timed."""
        return self.case.run if launch == "eager" else self.replay


def prepared(device: Device, case: Case, record: bool = True) -> Candidate:
    """Warm a case up and record it, if the device times recordings and the case can be recorded.

    What waits for the device is found out before, in a run where waiting is an error: a recording that fails
    half-way can leave torch's random generator unusable for the rest of the process.
    """
    for _ in range(device.warm_ups):
        case.clear()
        case.run()
    case.clear()
    device.synchronize()
    if not record or all(launch == "eager" for launch, _ in device.ways):
        return Candidate(case)
    try:
        with device.waits_are_errors():
            case.run()
        # Without gradients there, a backward writes them into memory of the recording, at every replay anew.
        case.clear()
        replay = device.recorded(case.run)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return Candidate(case, None, f"cannot be recorded: {first_line(error)}")
    finally:
        case.clear()
    replay()
    device.synchronize()
    return Candidate(case, replay)


def first_line(error: BaseException) -> str:
    """Give what an error says, as one short line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


class Times(NamedTuple):
    """Seconds of one candidate in one way, round by round."""

    name: str
    way: Way
    seconds: list[float]


def measured(
    device: Device, candidates: Mapping[str, Candidate], rounds: int, ways: Sequence[Way] = ()
) -> list[Times]:
    """Time candidates in turn: each once in every way and round, in an order of the round's own."""
    order = random.Random(0)  # no candidate always follows the one that leaves the caches worst
    marks: dict[tuple[str, Way], list[tuple[Mark, Mark]]] = {}
    with without_collecting():
        for _ in range(rounds):
            for way in ways or device.ways:
                for name in order.sample(list(candidates), len(candidates)):
                    if candidates[name].launched(way[0]) is not None:
                        marks.setdefault((name, way), []).append(timed_once(device, candidates[name], way))
            # Once a round, so that the queue of launches never fills up and stops the host between two marks.
            device.synchronize()
        for candidate in candidates.values():
            candidate.case.clear()
    return [
        Times(name, way, [device.seconds(*pair) for pair in marks[name, way]])
        for name, way in product(candidates, ways or device.ways)
        if (name, way) in marks
    ]


def timed_once(device: Device, candidate: Candidate, way: Way) -> tuple[Mark, Mark]:
    """Run a candidate once between two marks.

    A recording is queued while the device is still busy with what comes before the first mark: its time is
    the device's alone. An eager run starts on an idle device: what the host takes to launch counts.
    """
    launch, cache = way
    run = candidate.launched(launch)
    assert run is not None
    candidate.case.clear()
    if cache == "cold":
        device.flush()
    elif cache == "warm":
        run()
        candidate.case.clear()
    if launch == "eager":
        device.synchronize()
    start = device.mark()
    run()
    return start, device.mark()


def rounds_within(device: Device, candidates: Mapping[str, Candidate], budget_s: float) -> int:
    """Fit as many rounds into a budget as the contract allows; without one, a single round."""
    if not budget_s:
        return 1
    taken = sum(sum(one.seconds) for one in measured(device, candidates, 1))
    return max(LEAST_ROUNDS, min(MOST_ROUNDS, int(budget_s / taken)))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Give the median and the interquartile range."""
    many = values if len(values) > 1 else [*values, *values]
    low, median, high = statistics.quantiles(many, n=4, method="inclusive")
    return tidy(median), tidy(high - low)


def tidy(value: float) -> float:
    """Keep six digits: more would be noise in a committed file."""
    return float(f"{value:.6g}")


def paired(values: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Ratios of one case to another, round by round: what drifts over rounds falls out."""
    return spread([value / one for value, one in zip(values, base, strict=True)])


def beside(values: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Give the fields of a timed row: milliseconds, and the ratio to a base."""
    times = zip(("median_ms", "iqr_ms"), spread([1e3 * value for value in values]), strict=True)
    return dict([*times, *zip(("ratio", "ratio_iqr"), paired(values, base), strict=True)])

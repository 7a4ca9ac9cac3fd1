"""Times cases side by side: replayed and eager, cold and warm, round by round, twice."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from benchmarks.gpu.device import Device, Mark, Run, without_collecting
from benchmarks.gpu.schema import Cache, Launch
from benchmarks.measuring import Case

WARM_UPS = 3
LAUNCHES: tuple[Launch, ...] = ("graph", "eager")
CACHES: tuple[Cache, ...] = ("cold", "warm")
Way = tuple[Launch, Cache]


@dataclass(frozen=True)
class Candidate:
    """A case that runs on this device.

    Attributes:
        case: What is timed eagerly.
        replay: Replays its recorded launches; None if it cannot be recorded.
        why_not: Then why.
    """

    case: Case
    replay: Run | None = None
    why_not: str = ""

    def how(self, launch: Launch) -> Run | None:
        """Give what is timed."""
        return self.case.run if launch == "eager" else self.replay


def prepared(device: Device, case: Case, record: bool = True) -> Candidate:
    """Warm a case up and record it, if it can be recorded.

    What waits for the device is found out before, in a run where waiting is an error: a recording that fails
    half-way can leave torch's random generator unusable for the rest of the process.
    """
    for _ in range(WARM_UPS):
        case.clear()
        case.run()
    case.clear()
    device.synchronize()
    if not record:
        return Candidate(case, None, "its shapes follow from the routing")
    try:
        with device.unsynchronized():
            case.run()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return Candidate(case, None, f"waits for the device: {first_line(error)}")
    # Without gradients there, a backward writes them into memory of the recording, at every replay anew.
    case.clear()
    try:
        replay = device.captured(case.run)
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


def timed_once(device: Device, candidate: Candidate, way: Way) -> tuple[Mark, Mark]:
    """Run a candidate once between two marks.

    A recording is queued while the device is still busy with what comes before the first mark: its time is
    the device's alone. An eager run starts on an idle device: what the host takes to launch counts.
    """
    launch, cache = way
    run = candidate.how(launch)
    assert run is not None
    candidate.case.clear()
    if cache == "cold":
        device.flush()
    else:
        run()
        candidate.case.clear()
    if launch == "eager":
        device.synchronize()
    start = device.mark()
    run()
    return start, device.mark()


def one_repeat(
    device: Device, candidates: Mapping[str, Candidate], ways: Sequence[Way], rounds: int
) -> dict[tuple[str, Way], list[float]]:
    """Time every candidate in every way once per round, in an order that every round draws anew."""
    drawn = random.Random(0)
    marks: dict[tuple[str, Way], list[tuple[Mark, Mark]]] = {}
    for _ in range(rounds):
        for way in ways:
            for name in drawn.sample(list(candidates), len(candidates)):
                candidate = candidates[name]
                if candidate.how(way[0]) is not None:
                    marks.setdefault((name, way), []).append(timed_once(device, candidate, way))
        # Once a round, so that the queue of launches never fills up and stops the host between two marks.
        device.synchronize()
    for candidate in candidates.values():
        candidate.case.clear()
    return {key: [device.seconds(*pair) for pair in pairs] for key, pairs in marks.items()}


@dataclass(frozen=True)
class Times:
    """Seconds of one candidate in one way, of both repeats."""

    name: str
    way: Way
    repeats: tuple[list[float], list[float]]

    @property
    def all(self) -> list[float]:
        """Both repeats, one after the other."""
        return [*self.repeats[0], *self.repeats[1]]


def measured(
    device: Device,
    candidates: Mapping[str, Candidate],
    rounds: int,
    ways: Sequence[Way] = tuple(product(LAUNCHES, CACHES)),
) -> Iterator[Times]:
    """Time candidates side by side, twice."""
    with without_collecting():
        one, two = (one_repeat(device, candidates, ways, rounds) for _ in range(2))
    for name, way in product(candidates, ways):
        if (name, way) in one:
            yield Times(name, way, (one[name, way], two[name, way]))

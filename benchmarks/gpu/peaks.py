"""Activation memory of one forward and backward of the library and its peers: kept, and at the peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.gpu.cases import LORA, LORA_32, PLAIN
from benchmarks.gpu.clock import first_line
from benchmarks.gpu.device import Device
from benchmarks.gpu.schema import At, Failure, Peak
from benchmarks.gpu.timing import built, without_experts
from benchmarks.measuring import case_of, gradients_like
from benchmarks.memory import MIB, saved_bytes


def wanted(points: Sequence[At], ours: Sequence[str], peers: Sequence[str]) -> Iterator[tuple[str, At]]:
    """List who is counted where: one LoRA once, the pools at every size, routed peers at those beyond one."""
    one = points[0].model_copy(update={"experts": 1})
    yield from ((PLAIN, one), (LORA, one), (LORA_32, one))
    for at in points:
        yield from ((name, at) for name in ours)
        if at.experts > 1:
            yield from ((name, at) for name in peers)


def peaks(
    device: Device, points: Sequence[At], ours: Sequence[str], peers: Sequence[str]
) -> tuple[list[Peak], list[Failure]]:
    """Count everybody's memory, after a run that warms up."""
    found, failures = [], []
    for name, at in wanted(points, ours, peers):
        try:
            found.append(counted(device, name, at))
        except Exception as error:
            failures.append(Failure(case=f"{name}, memory", at=at, why=first_line(error)))
        device.still_there(name)
    return found, failures


def counted(device: Device, name: str, at: At) -> Peak:
    """Build, warm up and count one competitor."""
    peer, hidden = built(device, name, at)
    case = case_of(peer, hidden, gradients_like(hidden), "training")
    case.run()
    case.clear()
    saved = saved_bytes(lambda: tuple(peer.model(hidden)), peer.model.parameters())
    peak = device.peak_bytes(case.run)
    case.clear()
    where = without_experts(at) if name == PLAIN else at
    return Peak(case=name, at=where, saved_mib=saved / MIB, peak_mib=peak / MIB)

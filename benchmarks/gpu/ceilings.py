"""What the device reaches in this very run: products of exactly the plain projections' size, and a copy."""

from __future__ import annotations

import statistics

import torch

from benchmarks.gpu.clock import Way, measured, prepared
from benchmarks.gpu.device import Device, Run
from benchmarks.gpu.schema import At, Ceiling
from benchmarks.gpu_model import base
from benchmarks.measuring import Case


def median_seconds(device: Device, run: Run, rounds: int, way: Way = ("graph", "warm")) -> float:
    """Time something alone; the better of the two repeats counts.

    Raises:
        RuntimeError: if it cannot be recorded.
    """
    candidate = prepared(device, Case(run))
    if candidate.replay is None:
        raise RuntimeError(candidate.why_not)
    (times,) = measured(device, {"alone": candidate}, rounds, [way])
    return min(statistics.median(repeat) for repeat in times.repeats)


@torch.no_grad()
def ceiling(device: Device, at: At, rounds: int) -> Ceiling:
    """Measure both ceilings at a size.

    Products run with a warm cache and recorded launches, and the better of two forms counts: nothing should
    be above a ceiling. The copy runs with a cold cache: it stands for memory and not for the cache.
    """
    tokens, width = at.tokens, at.width
    generator = torch.Generator(device.torch_device).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device.torch_device).to(device.dtype)

    hidden, weights = draw(tokens, width), draw(2 * width, width)
    one, two = weights.split(width)
    outs = [hidden.new_empty(tokens, width) for _ in range(2)]
    both = hidden.new_empty(tokens, 2 * width)

    def apart() -> None:
        torch.mm(hidden, one.mT, out=outs[0])
        torch.mm(hidden, two.mT, out=outs[1])

    def together() -> None:
        torch.mm(hidden, weights.mT, out=both)

    work = base(tokens, width)
    product = min(median_seconds(device, run, rounds) for run in (apart, together))
    half = int(work.moved) // 2
    source = torch.randint(
        0, 256, (half,), dtype=torch.uint8, device=device.torch_device, generator=generator
    )
    target = torch.empty_like(source)
    copy = median_seconds(device, lambda: target.copy_(source), rounds, ("graph", "cold"))
    return Ceiling(tokens=tokens, width=width, flops_per_s=work.flops / product, bytes_per_s=2 * half / copy)

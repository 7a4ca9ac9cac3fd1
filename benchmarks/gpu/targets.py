"""The targets of the kernels, each with what a result says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.gpu.cases import LORA, LORA_32
from benchmarks.gpu.schema import GpuResult, Launch, Row
from benchmarks.gpu_model import GPU_TARGETS, GpuTarget
from benchmarks.schema import Pass

AUTO, OURS = "auto", "prw"
T, SMALL_T = 4096, 1024


@dataclass(frozen=True)
class Found:
    """A measured value and what it is of; several are judged by the worst."""

    value: float
    what: str


@dataclass(frozen=True)
class Verdict:
    """A target beside its measurement; `met` is None where nothing was measured."""

    target: GpuTarget
    measured: str
    met: bool | None


Measure = Callable[[GpuResult], list[Found]]


def cold(
    result: GpuResult, case: str, tokens: int, rank: int, experts: int, passes: Pass = "forward",
    launch: Launch = "graph",
) -> Row | None:  # fmt: skip
    """Find a row of even token routing with a cold cache."""
    for row in result.rows():
        at = row.at
        point = (at.tokens, at.rank, at.experts, at.granularity, at.routing)
        how = (row.case, row.passes, row.launch, row.cache)
        if point == (tokens, rank, experts, "token", "uniform") and how == (case, passes, launch, "cold"):
            return row
    return None


def beside_plain(rank: int, pools: tuple[int, ...], passes: Pass = "forward", tokens: int = T) -> Measure:
    """Ratio of the routed projection to two plain ones, by the kernel that `auto` takes."""

    def measure(result: GpuResult) -> list[Found]:
        found = ((experts, cold(result, AUTO, tokens, rank, experts, passes)) for experts in pools)
        return [Found(row.ratio, f"N={experts}") for experts, row in found if row is not None]

    return measure


def beside_peer(peer: str, pools: tuple[int, ...], peer_experts: int | None = None) -> Measure:
    """Time of a peer over that of the library as a whole: recorded if both can be, else both eager."""

    def measure(result: GpuResult) -> list[Found]:
        found = []
        for experts in pools:
            for launch in ("graph", "eager"):
                ours = cold(result, OURS, T, 128, experts, launch=launch)
                theirs = cold(result, peer, T, 128, peer_experts or experts, launch=launch)
                if ours is not None and theirs is not None:
                    found.append(Found(theirs.median_us / ours.median_us, f"N={experts}, {launch}"))
                    break
        return found

    return measure


def memory_beside(peer: str, experts: int, peer_experts: int) -> Measure:
    """What autograd keeps for the backward, over what it keeps for a peer."""

    def measure(result: GpuResult) -> list[Found]:
        kept = {
            (peak.case, peak.at.experts): peak.saved_mib for group in result.groups for peak in group.peaks
        }
        ours, theirs = kept.get((OURS, experts)), kept.get((peer, peer_experts))
        return [Found(ours / theirs, f"N={experts}")] if ours is not None and theirs else []

    return measure


def flux_step(result: GpuResult) -> list[Found]:
    """Denoising steps of the FLUX-proportioned model over the plain model's, rank 128."""
    group = result.group("flux-r128")
    steps = group.steps if group else []
    return [
        Found(step.ratio, step.case)
        for step in steps if step.what == "denoising step" and step.case.startswith("prw")
    ]  # fmt: skip


AT_MOST, AT_LEAST = "at most", "at least"
MEASURES: Mapping[str, tuple[Measure, str, float]] = {
    "two nn.Linear, forward, r = 16, N ≤ 8": (beside_plain(16, (1, 2, 4, 8)), AT_MOST, 1.20),
    "two nn.Linear, forward, r = 64, N ≤ 4": (beside_plain(64, (1, 2, 4)), AT_MOST, 1.25),
    "two nn.Linear, forward, r = 128, N = 1": (beside_plain(128, (1,)), AT_MOST, 1.22),
    "two nn.Linear, forward, r = 128, N = 2": (beside_plain(128, (2,)), AT_MOST, 1.27),
    "two nn.Linear, forward, r = 128, N = 4": (beside_plain(128, (4,)), AT_MOST, 1.30),
    "two nn.Linear, forward, r = 128, N = 8": (beside_plain(128, (8,)), AT_MOST, 1.35),
    "two nn.Linear, forward, r = 16, N = 64": (beside_plain(16, (64,)), AT_MOST, 1.35),
    "two nn.Linear, forward and backward, r = 128, N = 1 to 8": (
        beside_plain(128, (1, 2, 4, 8), "training"), AT_MOST, 1.40,
    ),
    "two nn.Linear, T = 1024, K and V stacked": (
        beside_plain(128, (1, 2, 4, 8), tokens=SMALL_T), AT_MOST, 1.15,
    ),
    "PEFT LoRA, same rank, bfloat16 adapters": (beside_peer(LORA, (1,), 1), AT_LEAST, 1.25),
    "PEFT LoRA as it comes: float32 adapters, no autocast, TF32 off": (
        beside_peer(LORA_32, (1,), 1), AT_LEAST, 2.0,
    ),
    "MixLoRA-style loop, any N": (beside_peer("MixLoRA-style loop", (4, 8)), AT_LEAST, 1.8),
    "transformers grouped_mm": (beside_peer("transformers grouped_mm", (4, 8)), AT_LEAST, 1.4),
    "PEFT Arrow, N = 4": (beside_peer("PEFT Arrow", (4,)), AT_LEAST, 2.0),
    "PEFT Arrow, N = 8": (beside_peer("PEFT Arrow", (8,)), AT_LEAST, 3.0),
    "activation memory of PEFT LoRA with float32 adapters": (memory_beside(LORA_32, 1, 1), AT_MOST, 1 / 3),
    "activation memory of PEFT Arrow, N = 4": (memory_beside("PEFT Arrow", 4, 4), AT_MOST, 1 / 6),
    "a whole FLUX step": (flux_step, AT_MOST, 1.015),
}  # fmt: skip
"""How each target is measured, and its limit."""


def verdicts(result: GpuResult) -> Iterator[Verdict]:
    """Judge every target by its worst point."""
    for target in GPU_TARGETS:
        measure, sense, limit = MEASURES[target.against]
        found = measure(result)
        if not found:
            yield Verdict(target, "not measured", None)
            continue
        worst = (max if sense == AT_MOST else min)(found, key=lambda one: one.value)
        met = worst.value <= limit if sense == AT_MOST else worst.value >= limit
        yield Verdict(target, f"{worst.value:.3f} ({worst.what})", met)

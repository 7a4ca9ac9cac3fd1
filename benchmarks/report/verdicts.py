"""Each target of the issue beside what was measured: computed from the results, never typed."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.groups import LORA
from benchmarks.report.found import (
    Found,
    Ratio,
    beside_lora,
    cached,
    faster_than,
    five_beside_one,
    geometric_mean,
    growth,
    memory_beside,
    over_floor,
)
from benchmarks.schema import Kept, Pass

PASSES: tuple[tuple[Pass, str], ...] = (("forward", "forward"), ("training", "forward and backward"))


@dataclass(frozen=True)
class Verdict:
    """A target, what was measured, and whether that meets it; None if nothing was measured."""

    target: str
    measured: str
    met: bool | None

    @property
    def word(self) -> str:
        """Say it in a word."""
        return "not measured" if self.met is None else "met" if self.met else "**NOT met**"


def at_most(target: str, ratios: list[Ratio], limit: float) -> Verdict:
    """Judge that every point stays at or below a limit; say the worst, and how many stay."""
    worst = max(ratios, key=value_of, default=None)
    return judged(target, ratios, worst, [ratio.value <= limit for ratio in ratios])


def at_least(target: str, ratios: list[Ratio], limit: float) -> Verdict:
    """Judge that every point reaches a limit; say the worst, and how many do."""
    worst = min(ratios, key=value_of, default=None)
    return judged(target, ratios, worst, [ratio.value >= limit for ratio in ratios])


def value_of(ratio: Ratio) -> float:
    """Order ratios by value."""
    return ratio.value


def judged(target: str, ratios: list[Ratio], worst: Ratio | None, held: list[bool]) -> Verdict:
    """Say the worst point, the mean, and at how many points the target holds."""
    if worst is None:
        return Verdict(target, "no such point", None)
    mean = f"mean {geometric_mean(ratios):.2f}"
    reach = "" if worst.reach is None else f", {worst.reach:.2f} were prw at its floor"
    said = f"worst {worst.value:.2f} ({worst.at}{reach}); {mean}; holds at {sum(held)} of {len(held)} points"
    return Verdict(target, said, all(held))


def mean_at_most(target: str, ratios: list[Ratio], limit: float) -> Verdict:
    """Judge a geometric mean."""
    if not ratios:
        return Verdict(target, "no such point", None)
    mean = geometric_mean(ratios)
    return Verdict(target, f"{mean:.3f} over {len(ratios)} points", mean <= limit)


def floors(found: Found) -> list[Verdict]:
    """Judge closeness to the limit, and that cost does not grow with the pool."""
    verdicts = []
    for (passes, words), limit in zip(PASSES, (1.20, 1.25), strict=True):
        ratios = over_floor(found, passes)
        verdicts.append(
            mean_at_most(f"{words}: time over its floor, geometric mean ≤ {limit:.2f}", ratios, limit)
        )
        verdicts.append(at_most(f"{words}: time over its floor, no point over 1.5", ratios, 1.5))
    for passes, words in PASSES:
        target = f"{words}: N = 64 at r = 16 costs ≤ 1.25 times N = 1"
        verdicts.append(at_most(target, growth(found, passes), 1.25))
    return verdicts


def peers(found: Found) -> list[Verdict]:
    """Judge beside the peers."""
    verdicts = []
    for passes, words in PASSES:
        eight, one = beside_lora(found, passes, 8), beside_lora(found, passes, 1)
        verdicts.append(
            at_most(f"{words}: N = 8 by token ≤ 1.25 times one PEFT LoRA of its rank", eight, 1.25)
        )
        verdicts.append(at_most(f"{words}: N = 1 no slower than PEFT LoRA", one, 1.0))
    limits = (("PEFT Arrow", 3.0), ("PEFT X-LoRA layer", 5.0), ("MixLoRA-style loop", 1.3))
    for (passes, words), (peer, limit) in ((which, pair) for which in PASSES for pair in limits):
        target = f"{words}: at N = 8 ≥ {limit:g} times faster than {peer}"
        verdicts.append(at_least(target, faster_than(found, passes, peer), limit))
    return verdicts


def saved(row: Kept) -> float:
    """What autograd keeps."""
    return row.saved_mib


def peak(row: Kept) -> float:
    """The most allocated at once."""
    return row.peak_mib


def memory(found: Found) -> list[Verdict]:
    """Judge activation memory, kept for backward and at its peak."""
    verdicts = []
    for what, words in ((saved, "kept for backward"), (peak, "at its peak")):
        lora = memory_beside(found, LORA, (1, 4, 8), 1, what)
        arrow = memory_beside(found, "PEFT Arrow", (4,), None, what)
        verdicts.append(at_most(f"activation memory {words} ≤ PEFT LoRA's, N = 1, 4, 8", lora, 1.0))
        verdicts.append(at_most(f"activation memory {words} ≤ a third of Arrow's, N = 4", arrow, 1 / 3))
    return verdicts


def flux(found: Found) -> list[Verdict]:
    """Judge the training step of a whole model."""
    ratios = [
        Ratio(step.ratio_to_lora, f"d={result.model['width']} r={result.model['rank']} N={step.experts}")
        for result, step in found.steps()
        if step.what == "training step" and step.case.startswith("prw")
    ]
    return [at_most("FLUX training step ≤ 1.05 times the step with PEFT LoRA, N = 1, 5, 8", ratios, 1.05)]


def generation(found: Found) -> list[Verdict]:
    """Judge what a source costs when drawing, and what a pool costs."""
    text, kontext = cached(found, lambda row: row.ratio), cached(found, lambda row: row.kontext_ratio)
    time = five_beside_one(found, lambda row: row.median_ms)
    memory = five_beside_one(found, lambda row: row.weights_mib + row.peak_mib)
    return [
        at_most("drawing with the source cached ≤ 1.20 times text alone", text, 1.20),
        at_least("drawing with the source cached ≥ 1.5 times faster than FluxKontextPipeline", kontext, 1.5),
        at_most("drawing with N = 5 ≤ 1.05 times the time of N = 1", time, 1.05),
        at_most("drawing with N = 5 ≤ 1.05 times the memory of N = 1", memory, 1.05),
    ]


def verdicts(found: Found) -> list[Verdict]:
    """Judge every target."""
    return [*floors(found), *peers(found), *memory(found), *flux(found), *generation(found)]

"""A result as tables on the terminal: checks, times beside floors, targets, predictions, what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.gpu.schema import GpuResult, Row
from benchmarks.gpu.targets import verdicts
from benchmarks.schema import Step

PASSED = {True: "passed", False: "FAILED", None: "not made"}
MET = {True: "met", False: "NOT MET", None: "-"}
HELD = {True: "held", False: "NOT HELD", None: "-"}


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> Iterator[str]:
    """Write columns of equal width."""
    lines = [list(head), *map(list, body)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def report(result: GpuResult) -> Iterator[str]:
    """Write everything that a reader at a terminal wants to know."""
    facts = ", ".join(f"{name} {value}" for name, value in result.facts.items())
    yield f"{result.device} ({facts}), torch {result.origin.versions['torch']}"
    changed = ", files changed" if result.origin.changed else ""
    yield f"commit {result.origin.commit}{changed}, {result.mode} run"
    yield from section("Correctness", checks(result))
    yield from section("Ceilings, measured in this run", ceilings(result))
    yield from section(
        "Times (recorded where possible, cold cache; ratios to two plain projections launched alike)",
        times(result),
    )
    yield from section("Peers: their time over prw's, models with their routers", beside_ours(result))
    yield from section("FLUX steps", steps(result))
    yield from section("Activation memory of a forward and backward, MiB", peaks(result))
    yield from section("Targets", targets(result))
    yield from section("Predictions", predictions(result))
    yield from section("Without a number", failures(result))
    if result.left:
        yield from ("", f"Left for another run of the same command: {', '.join(result.left)}")


def section(title: str, lines: Iterator[str]) -> Iterator[str]:
    """Put a title over lines, if there are any below the head."""
    found = list(lines)
    if len(found) > 1:
        yield from ("", title, *found)


def checks(result: GpuResult) -> Iterator[str]:
    body = [(check.kernel, check.check, PASSED[check.passed], check.note) for check in result.checks()]
    return table(("kernel", "check", "", ""), body)


def ceilings(result: GpuResult) -> Iterator[str]:
    body = [
        (f"T={one.tokens} d={one.width}", f"{one.flops_per_s / 1e12:.0f}", f"{one.bytes_per_s / 1e12:.2f}")
        for group in result.groups for one in group.ceilings
    ]  # fmt: skip
    return table(("size", "TFLOP/s", "TB/s"), body)


def times(result: GpuResult) -> Iterator[str]:
    cold = [row for row in result.rows() if row.cache == "cold"]
    recorded = {(row.case, row.at, row.passes) for row in cold if row.launch == "graph"}
    rows = [row for row in cold if row.launch == "graph" or (row.case, row.at, row.passes) not in recorded]
    head = ("point", "pass", "case", "launch", "us", "+-", "ratio", "floor/time", "unfused/time", "marginal")
    return table(head, map(time_line, rows))


def beside_ours(result: GpuResult) -> Iterator[str]:
    """Each peer over prw as it comes: both recorded, or both eager where the peer cannot be."""
    body = []
    for group in result.groups:
        cold = {(row.case, row.launch): row for row in group.rows if row.cache == "cold"}
        for case in dict.fromkeys(row.case for row in group.rows):
            launch = "graph" if (case, "graph") in cold else "eager"
            ours, theirs = cold.get(("prw", launch)), cold.get((case, launch))
            if ours is not None and theirs is not None and not case.startswith("prw"):
                times = theirs.median_us / ours.median_us
                body.append(
                    (ours.at.said(), ours.passes, f"{case} N={theirs.at.experts}", launch, f"{times:.2f}")
                )
    return table(("point of prw", "pass", "case", "launch", "times"), body)


def time_line(row: Row) -> tuple[str, ...]:
    unfused = "" if row.unfused_us is None else f"{row.unfused_us / row.median_us:.2f}"
    return (
        row.at.said(),
        row.passes,
        row.case,
        row.launch,
        f"{row.median_us:.1f}",
        f"{row.iqr_us:.1f}",
        f"{row.ratio:.3f}",
        "" if row.floor_over_time is None else f"{row.floor_over_time:.2f}",
        unfused,
        "" if row.marginal is None else f"{row.marginal:.1f}",
    )


def steps(result: GpuResult) -> Iterator[str]:
    body = [
        (group.name, one.what, one.case, f"{one.median_ms:.2f}", *ratios(one))
        for group in result.groups
        for one in group.steps
    ]
    return table(("", "step", "case", "ms", "to plain", "to PEFT LoRA"), body)


def ratios(step: Step) -> tuple[str, str]:
    return f"{step.ratio:.3f}", f"{step.ratio_to_lora:.3f}"


def peaks(result: GpuResult) -> Iterator[str]:
    body = [
        (peak.at.said(), peak.case, f"{peak.saved_mib:.1f}", f"{peak.peak_mib:.1f}")
        for group in result.groups for peak in group.peaks
    ]  # fmt: skip
    return table(("point", "case", "kept", "peak"), body)


def targets(result: GpuResult) -> Iterator[str]:
    body = [
        (one.target.against, one.target.must, one.target.good, one.measured, MET[one.met])
        for one in verdicts(result)
    ]
    return table(("against", "must", "good", "measured", ""), body)


def predictions(result: GpuResult) -> Iterator[str]:
    body = [
        (one.name, one.question, one.predicted, one.measured, HELD[one.held], one.then)
        for group in result.groups for one in group.probes
    ]  # fmt: skip
    return table(("", "question", "predicted", "measured", "", "then"), body)


def failures(result: GpuResult) -> Iterator[str]:
    body = [
        (one.case, "" if one.at is None else one.at.said(), one.why)
        for group in result.groups for one in group.failures
    ]  # fmt: skip
    return table(("case", "point", "why"), body)

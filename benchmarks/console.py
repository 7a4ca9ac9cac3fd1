"""A result as lines for a terminal, the same for a CPU and a GPU."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.schema import Result, Row

PASSED = {True: "passed", False: "FAILED", None: "not made"}


def lines(result: Result) -> Iterator[str]:
    """Write what a result holds; of a GPU's times those with a cold cache, recorded if they can be."""
    recorded = {(row.case, row.point) for row in result.times if row.launch == "graph"}
    for row in result.times:
        shown = row.launch == "graph" or (row.case, row.point) not in recorded
        if row.cache != "warm" and shown:
            yield time_line(row)
    for kept in result.memory:
        label = f"{kept.case}, {kept.point.label()}"
        yield f"{label:64} saved {kept.saved_mib:8.2f} MiB, peak {kept.peak_mib:8.2f} MiB"
    for step in result.steps:
        ratios = f"x{step.ratio:.3f}  to LoRA x{step.ratio_to_lora:.3f}"
        yield f"{step.what}: {step.case:24} {step.median_ms:9.1f} ms  {ratios}"
    for one in result.pictures:
        ratios = f"x{one.ratio:.3f}  Kontext takes x{one.kontext_ratio:.3f}"
        memory = f"weights {one.weights_mib:.1f} MiB, peak {one.peak_mib:.1f} MiB"
        yield f"{one.case:40} {one.median_ms:9.1f} ms  {ratios}  {memory}"
    for way in result.pipelines:
        kept_words = f"{way.source}, {way.workers} workers, cache {way.cache}"
        yield f"{kept_words:40} {way.images_per_second:8.1f} examples/s  +-{way.iqr:.1f}"
    for share in result.shares:
        yield f"{share.stage:20} step {share.step_ms:.0f} ms, {100 * share.outside:.1f} % outside the model"
    for check in result.checks:
        yield f"{check.kernel:10} {check.check:48} {PASSED[check.passed]} {check.note}".rstrip()
    for ceiling in result.ceilings:
        speeds = f"{ceiling.flops_per_s / 1e12:.3g} TFLOP/s, {ceiling.bytes_per_s / 1e12:.3g} TB/s"
        yield f"T={ceiling.tokens} d={ceiling.width}: {speeds}"
    for failure in result.failures:
        at = "" if failure.point is None else f" at {failure.point.label()}"
        yield f"without a number: {failure.case}{at}: {failure.why}"


def time_line(row: Row) -> str:
    """Write a time: median, interquartile range, ratio to the first case, floor over time."""
    reach = "" if row.floor is None else f"  floor/time {row.floor / row.ratio:.2f}"
    marginal = "" if row.marginal is None or row.cache == "mixed" else f"  marginal {row.marginal:.1f}"
    how = "" if row.cache == "mixed" else f"{row.launch} "
    label = f"{row.case}, {row.point.label()}"
    return f"{label:64} {how}{row.median_ms:9.3f} ms  +-{row.iqr_ms:7.3f}  x{row.ratio:.3f}{reach}{marginal}"

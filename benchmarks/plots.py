"""Plots of the page, as PNG files that depend on the results alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.cases import COMPILED, LORA, OURS, ROUTED_PEERS
from benchmarks.floors import Limits, base, dense_ratio, expand, routed_ratio, shrink
from benchmarks.report import BIG, PASSES, Found, key_of, over_floor

matplotlib.use("Agg")
from matplotlib import pyplot

DPI = 110
RATIO = "ratio to two nn.Linear"


Axes = list[Any]
PLOTS: dict[str, Callable[[Found, Path], None]] = {}
"""Every plot by the name of its file."""


def plot(name: str, columns: int = 2, height: float = 3.6) -> Callable[[Callable[[Found, Axes], None]], None]:
    """Make a function that fills a row of axes one that writes a file, without anything that says when."""

    def register(fill: Callable[[Found, Axes], None]) -> None:
        def write(found: Found, path: Path) -> None:
            pyplot.rcdefaults()
            pyplot.rcParams.update({"axes.titlesize": 10, "axes.labelsize": 9})
            made, axes = pyplot.subplots(1, columns, figsize=(5.2 * columns, height), squeeze=False)
            fill(found, list(axes[0]))
            made.tight_layout()
            made.savefig(path, dpi=DPI, metadata={"Software": None})
            pyplot.close(made)

        PLOTS[f"benchmarks-{name}.png"] = write

    return register


def by_experts(axis: Any, pools: Sequence[int]) -> None:
    """Make an axis of pool sizes: logarithmic, with the sizes themselves as marks."""
    axis.set_xscale("log")
    axis.set_xticks(pools, [str(pool) for pool in pools])
    axis.minorticks_off()


def legend(axis: Any) -> None:
    """Name what was plotted, if anything was."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7)


def bars(axis: Any, values: Sequence[tuple[str, float, bool]]) -> None:
    """Plot names and values as bars; ours have another colour."""
    colours = ["C1" if ours else "C0" for *_, ours in values]
    axis.barh([name for name, *_ in values], [value for _, value, _ in values], color=colours)
    axis.tick_params(labelsize=7)


def sizes(found: Found) -> list[tuple[int, int]]:
    """List tokens and width of the grid where the targets hold."""
    measured = {(row.point.tokens, row.point.width) for row in found.pools("forward")}
    return sorted((size for size in measured if size[0] >= BIG), key=lambda size: (size[1], size[0]))


@plot("experts")
def against_experts(found: Found, axes: Axes) -> None:
    """Ratio to the plain projections against N, at rank 16."""
    for axis, (passes, words) in zip(axes, PASSES, strict=True):
        rows = [row for row in found.pools(passes) if row.point.granularity == "token"]
        for tokens, width in sizes(found):
            own = [row for row in rows if key_of(row) == (tokens, width, 16)]
            points = sorted((row.point.experts, row.ratio) for row in own)
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=f"T={tokens} d={width}")
        axis.set(title=f"{words}, r = 16, by token", xlabel="experts, N", ylabel=RATIO)
        by_experts(axis, sorted({row.point.experts for row in found.pools(passes)}))
        legend(axis)


@plot("rank")
def against_rank(found: Found, axes: Axes) -> None:
    """Ratio to the plain projections against r, for eight experts, beside PEFT's LoRA and the floor."""
    for axis, (passes, words) in zip(axes, PASSES, strict=True):
        for place, size in enumerate(sizes(found)):
            rows = [row for row in found.rows("grid", passes) if key_of(row)[:2] == size]
            ours = [row for row in rows if (row.case, row.point.experts) == (OURS, 8)]
            ours = sorted(
                (row for row in ours if row.point.granularity == "token"), key=lambda row: row.point.rank
            )
            lora = sorted((row.point.rank, row.ratio) for row in rows if row.case == LORA)
            if not ours or not lora:
                continue
            ranks, colour = [row.point.rank for row in ours], f"C{place}"
            label = f"prw N=8, T={size[0]} d={size[1]}"
            axis.plot(ranks, [row.ratio for row in ours], marker="o", color=colour, label=label)
            axis.plot(ranks, [row.floor for row in ours], linestyle=":", color=colour)
            axis.plot(*zip(*lora, strict=True), marker="x", linestyle="--", color=colour, alpha=0.6)
        axis.set(title=f"{words}: dashed PEFT LoRA, dotted the floor", xlabel="rank, r", ylabel=RATIO)
        legend(axis)


@plot("floor")
def floor_over_time(found: Found, axes: Axes) -> None:
    """Floor over time of every point of the grid that counts, sorted."""
    for axis, (passes, words) in zip(axes, PASSES, strict=True):
        reached = sorted(1 / ratio.value for ratio in over_floor(found, passes))
        axis.plot(range(1, len(reached) + 1), reached, marker=".", linestyle="none")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(title=words, xlabel=f"points with T ≥ {BIG}, sorted", ylabel="floor / time", ylim=(0, 1.1))


@plot("peers")
def beside_peers(found: Found, axes: Axes) -> None:
    """Ratio of every peer, at the first of the points."""
    cases = [(LORA, 1), (OURS, 1), (OURS, 8), *((name, 8) for name in (*ROUTED_PEERS, COMPILED))]
    for axis, (passes, words) in zip(axes, PASSES, strict=True):
        key = next(iter(found.keys("peers", passes)), None)
        if key is None:
            continue
        values = [(name, n, found.ratio("peers", passes, name, key, n)) for name, n in reversed(cases)]
        bars(
            axis, [(f"{name}, N={n}", ratio, name == OURS) for name, n, ratio in values if ratio is not None]
        )
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(title=f"{words}, T={key[0]} d={key[1]} r={key[2]}", xlabel=RATIO)


@plot("memory")
def memory(found: Found, axes: Axes) -> None:
    """Activation memory of every case, at the first of the points."""
    rows = [row for row in found.memory() if row.point.rank]
    rows = [row for row in reversed(rows) if key_of(row) == key_of(rows[0])]
    for axis, (what, words) in zip(
        axes, (("saved_mib", "kept for backward"), ("peak_mib", "peak")), strict=True
    ):
        values = []
        for row in rows:
            sample = " by sample" if row.point.granularity == "sample" else ""
            name = f"{row.case}, N={row.point.experts}{sample}"
            values.append((name, getattr(row, what), row.case == OURS))
        if values:
            bars(axis, values)
            point = rows[0].point
            axis.set(title=f"{words}, T={point.tokens} d={point.width} r={point.rank}", xlabel="MiB")


@plot("flux")
def flux(found: Found, axes: Axes) -> None:
    """Steps of a whole model over the plain model's."""
    for axis, what in zip(axes, ("denoising step", "training step"), strict=True):
        values = []
        for result, step in found.steps():
            if step.what == what and step.experts:
                name = f"{step.case}, d={result.setup['width']} r={result.setup['rank']}"
                values.append((name, 100 * (step.ratio - 1), step.case.startswith(OURS)))
        bars(axis, values)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title=what, xlabel="% over the plain model's step")
        axis.invert_yaxis()


@plot("generation", 1, 2.8)
def generation(found: Found, axes: Axes) -> None:
    """Whole pictures over one from text alone."""
    for axis, result in zip(axes, found.of("generation"), strict=False):
        bars(axis, [(row.case, row.ratio, bool(row.experts)) for row in result.pictures])
        axis.axvline(1.2, color="black", linewidth=0.8, linestyle="--")
        first = result.pictures[0]
        title = f"d = {result.setup['width']}, {first.text} text and {first.noise} noise tokens"
        axis.set(title=title, xlabel="time over text alone (dashed: the target)")
        axis.invert_yaxis()


@plot("gpu-model")
def gpu_model(found: Found, axes: Axes) -> None:
    """The roofline of the GPU model, and the ratios that it gives."""
    limits, tokens, width = Limits(), 4096, 3072
    roof, ratios = axes
    span = [2**power for power in range(2, 13)]
    roof.plot(span, [min(limits.flops, limits.bytes_per_s * one) / 1e12 for one in span], color="black")
    marks = [base(tokens, width)]
    for rank in (16, 64, 128):
        marks += [shrink(tokens, width, rank, rank), expand(tokens, width, rank, rank)]
        marks.append(expand(tokens, width, rank, rank, writes=False))
    for place, mark in enumerate(marks):
        label = mark.name if place < 4 else None
        colour = "C0" if place == 0 else f"C{1 + (place - 1) % 3}"
        speed = mark.flops / mark.seconds(limits) / 1e12
        roof.plot(mark.flops / mark.moved, speed, "o", color=colour, label=label)
    title = "MODEL of an H100, not a measurement"
    roof.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="TFLOP/s", title=title)
    legend(roof)
    pools = (1, 2, 4, 8, 16, 32, 64)
    for place, rank in enumerate((16, 64, 128)):
        dense = [dense_ratio(tokens, width, rank, n, limits) for n in pools]
        routed = [routed_ratio(tokens, width, rank, n, limits) for n in pools]
        ratios.plot(pools, dense, linestyle="--", color=f"C{place}")
        ratios.plot(pools, routed, color=f"C{place}", label=f"r = {rank}, routed")
    by_experts(ratios, pools)
    ratios.set(ylim=(1, 2), xlabel="experts, N (dashed: dense)", ylabel=RATIO, title=title)
    legend(ratios)

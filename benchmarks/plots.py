"""Plots of the page, as PNG files that depend on the results alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.cases import COMPILED, LORA, ROUTED_PEERS
from benchmarks.floors import Limits, base, dense_ratio, expand, routed_ratio, shrink
from benchmarks.report import BIG, PASSES, Found, over_floor

matplotlib.use("Agg")
from matplotlib import pyplot

DPI = 110


def figure(columns: int, height: float = 3.6) -> tuple[Any, list[Any]]:
    """Start a row of plots."""
    pyplot.rcdefaults()
    pyplot.rcParams.update({"axes.titlesize": 10, "axes.labelsize": 9})
    drawn, axes = pyplot.subplots(1, columns, figsize=(5.2 * columns, height), squeeze=False)
    return drawn, list(axes[0])


def by_experts(axis: Any, pools: Sequence[int]) -> None:
    """Make an axis of pool sizes: logarithmic, with the sizes themselves as marks."""
    axis.set_xscale("log")
    axis.set_xticks(pools, [str(pool) for pool in pools])
    axis.minorticks_off()


def legend(axis: Any) -> None:
    """Name what was drawn, if anything was."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7)


def save(drawn: Any, path: Path) -> None:
    """Write a figure without anything that says when or by what."""
    drawn.tight_layout()
    drawn.savefig(path, dpi=DPI, metadata={"Software": None})
    pyplot.close(drawn)


def sizes(found: Found) -> list[tuple[int, int]]:
    """List tokens and width of the grid where the targets hold."""
    measured = {(row.point.tokens, row.point.width) for row in found.pools("forward")}
    return sorted((size for size in measured if size[0] >= BIG), key=lambda size: (size[1], size[0]))


def against_experts(found: Found, path: Path) -> None:
    """Ratio to the plain projections against N, at rank 16."""
    drawn, axes = figure(2)
    for axis, (passes, words) in zip(axes, PASSES, strict=True):
        for tokens, width in sizes(found):
            points = sorted(
                (row.point.experts, row.ratio)
                for row in found.pools(passes)
                if (row.point.tokens, row.point.width, row.point.rank) == (tokens, width, 16)
                and row.point.granularity == "token"
            )
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=f"T={tokens} d={width}")
        axis.set(title=f"{words}, r = 16, by token", xlabel="experts, N", ylabel="ratio to two nn.Linear")
        by_experts(axis, sorted({row.point.experts for row in found.pools(passes)}))
        legend(axis)
    save(drawn, path)


def against_rank(found: Found, path: Path) -> None:
    """Ratio to the plain projections against r, for eight experts, beside PEFT's LoRA and the floor."""
    drawn, axes = figure(2)
    for axis, (passes, words) in zip(axes, PASSES, strict=True):
        for place, (tokens, width) in enumerate(sizes(found)):
            rows = [
                row
                for row in found.rows("grid", passes)
                if (row.point.tokens, row.point.width) == (tokens, width)
            ]
            ours = sorted(
                (row.point.rank, row.ratio, row.floor)
                for row in rows
                if row.case == "prw" and row.point.experts == 8 and row.point.granularity == "token"
            )
            lora = sorted((row.point.rank, row.ratio) for row in rows if row.case == LORA)
            if not ours or not lora:
                continue
            ranks, ratios, floors = zip(*ours, strict=True)
            axis.plot(ranks, ratios, marker="o", color=f"C{place}", label=f"prw N=8, T={tokens} d={width}")
            axis.plot(ranks, floors, linestyle=":", color=f"C{place}")
            axis.plot(*zip(*lora, strict=True), marker="x", linestyle="--", color=f"C{place}", alpha=0.6)
        title = f"{words}: dashed PEFT LoRA, dotted the floor"
        axis.set(title=title, xlabel="rank, r", ylabel="ratio to two nn.Linear")
        legend(axis)
    save(drawn, path)


def floor_over_time(found: Found, path: Path) -> None:
    """Floor over time of every point of the grid that counts, sorted."""
    drawn, axes = figure(2)
    for axis, (passes, words) in zip(axes, PASSES, strict=True):
        reached = sorted(1 / ratio.value for ratio in over_floor(found, passes))
        axis.plot(range(1, len(reached) + 1), reached, marker=".", linestyle="none")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(title=words, xlabel=f"points with T ≥ {BIG}, sorted", ylabel="floor / time", ylim=(0, 1.1))
    save(drawn, path)


def beside_peers(found: Found, path: Path) -> None:
    """Ratio of every peer, at the first of the points."""
    drawn, axes = figure(2)
    for axis, (passes, words) in zip(axes, PASSES, strict=True):
        key = next(iter(found.keys("peers", passes)), None)
        if key is None:
            continue
        cases = [(LORA, 1), ("prw", 1), ("prw", 8), *((name, 8) for name in (*ROUTED_PEERS, COMPILED))]
        bars = [(f"{name}, N={n}", found.ratio("peers", passes, name, key, n)) for name, n in reversed(cases)]
        bars = [(name, ratio) for name, ratio in bars if ratio is not None]
        colours = ["C1" if name.startswith("prw") else "C0" for name, _ in bars]
        axis.barh([name for name, _ in bars], [ratio for _, ratio in bars], color=colours)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(title=f"{words}, T={key[0]} d={key[1]} r={key[2]}", xlabel="ratio to two nn.Linear")
        axis.tick_params(labelsize=7)
    save(drawn, path)


def memory(found: Found, path: Path) -> None:
    """Activation memory of every case, at the first of the points."""
    drawn, axes = figure(2)
    rows = [row for row in found.memory() if row.point.rank]
    if not rows:
        save(drawn, path)
        return
    first = rows[0].point
    rows = [
        row
        for row in reversed(rows)
        if (row.point.tokens, row.point.width, row.point.rank) == (first.tokens, first.width, first.rank)
    ]
    names = [
        f"{row.case}, N={row.point.experts}" + (" by sample" if row.point.granularity == "sample" else "")
        for row in rows
    ]
    colours = ["C1" if row.case == "prw" else "C0" for row in rows]
    for axis, what, values in (
        (axes[0], "kept for backward", [row.saved_mib for row in rows]),
        (axes[1], "peak", [row.peak_mib for row in rows]),
    ):
        axis.barh(names, values, color=colours)
        axis.set(title=f"{what}, T={first.tokens} d={first.width} r={first.rank}", xlabel="MiB")
        axis.tick_params(labelsize=7)
    save(drawn, path)


def flux(found: Found, path: Path) -> None:
    """Steps of a whole model over the plain model's."""
    drawn, axes = figure(2)
    for axis, what in zip(axes, ("denoising step", "training step"), strict=True):
        bars = [
            (f"{step.case}, d={result.setup['width']} r={result.setup['rank']}", step)
            for result, step in found.steps()
            if step.what == what and step.experts
        ]
        colours = ["C1" if step.case.startswith("prw") else "C0" for _, step in bars]
        axis.barh([name for name, _ in bars], [100 * (step.ratio - 1) for _, step in bars], color=colours)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title=what, xlabel="% over the plain model's step")
        axis.invert_yaxis()
        axis.tick_params(labelsize=7)
    save(drawn, path)


def generation(found: Found, path: Path) -> None:
    """Whole pictures over one from text alone."""
    results = found.of("generation")
    drawn, axes = figure(max(1, len(results)), 2.8)
    for axis, result in zip(axes, results, strict=False):
        colours = ["C1" if row.experts else "C0" for row in result.pictures]
        axis.barh(
            [row.case for row in result.pictures], [row.ratio for row in result.pictures], color=colours
        )
        axis.axvline(1.2, color="black", linewidth=0.8, linestyle="--")
        first = result.pictures[0]
        title = f"d = {result.setup['width']}, {first.text} text and {first.noise} noise tokens"
        axis.set(title=title, xlabel="time over text alone (dashed: the target)")
        axis.invert_yaxis()
        axis.tick_params(labelsize=7)
    save(drawn, path)


def gpu_model(path: Path) -> None:
    """The roofline of the GPU model, and the ratios that it gives."""
    limits, tokens, width = Limits(), 4096, 3072
    drawn, (roof, ratios) = figure(2)
    span = [2**power for power in range(2, 13)]
    roofline = [min(limits.flops, limits.bytes_per_s * one) / 1e12 for one in span]
    roof.plot(span, roofline, color="black")
    marks = [base(tokens, width)]
    for rank in (16, 64, 128):
        marks += [shrink(tokens, width, rank, rank), expand(tokens, width, rank, rank)]
        marks.append(expand(tokens, width, rank, rank, writes=False))
    for place, mark in enumerate(marks):
        label = mark.name if place < 4 else None
        colour = "C0" if place == 0 else f"C{1 + (place - 1) % 3}"
        roof.plot(
            mark.flops / mark.moved, mark.flops / mark.seconds(limits) / 1e12, "o", color=colour, label=label
        )
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
    ratios.set(ylim=(1, 2), xlabel="experts, N (dashed: dense)", ylabel="ratio to two nn.Linear", title=title)
    legend(ratios)
    save(drawn, path)


PLOTS: dict[str, Callable[[Found, Path], None]] = {
    "benchmarks-experts.png": against_experts,
    "benchmarks-rank.png": against_rank,
    "benchmarks-floor.png": floor_over_time,
    "benchmarks-peers.png": beside_peers,
    "benchmarks-memory.png": memory,
    "benchmarks-flux.png": flux,
    "benchmarks-generation.png": generation,
    "benchmarks-gpu-model.png": lambda _, path: gpu_model(path),
}
"""Every plot by the name of its file."""

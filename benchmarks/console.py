"""A result as lines for a terminal, the same for a CPU and a GPU."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.schema import Point, Result, Row


def lines(result: Result) -> Iterator[str]:
    """Write what a result holds; of a GPU's times those with a cold cache, recorded if they can be."""
    recorded = {(row.case, row.point) for row in result.times if row.launch == "graph"}
    for row in result.times:
        if row.cache != "warm" and (row.launch == "graph" or (row.case, row.point) not in recorded):
            yield time_line(row)
    for name in ("memory", "steps", "pictures", "pipelines", "shares", "checks", "ceilings", "failures"):
        for record in getattr(result, name):
            said = {key: value for key, value in record if value not in (None, "") and key != "routed"}
            words = {key: value.label() if isinstance(value, Point) else value for key, value in said.items()}
            yield f"{name}: " + ", ".join(f"{key} {value}" for key, value in words.items())


def time_line(row: Row) -> str:
    """Write a time: median, interquartile range, ratio to the first case, floor over time."""
    reach = "" if row.floor is None else f"  floor/time {row.floor / row.ratio:.2f}"
    how = "" if row.cache == "mixed" else f"{row.launch} "
    label = f"{row.case}, {row.point.label()}"
    return f"{label:64} {how}{row.median_ms:9.3f} ms  +-{row.iqr_ms:7.3f}  x{row.ratio:.3f}{reach}"

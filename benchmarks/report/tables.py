"""Tables of the page, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.generation import KONTEXT, PLAIN_TEXT
from benchmarks.groups import COMPILED, LORA, PLAIN, ROUTED_PEERS
from benchmarks.report.found import Found, Key
from benchmarks.report.verdicts import PASSES, verdicts
from benchmarks.schema import Pass, Timed


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def number(value: float | None, digits: int = 2) -> str:
    """Write a number, or a dash where nothing was measured."""
    return "–" if value is None else f"{value:.{digits}f}"


def verdict_table(found: Found) -> str:
    """Each target, what was measured, whether it was met."""
    rows = [(verdict.target, verdict.measured, verdict.word) for verdict in verdicts(found)]
    return table(("target", "measured", ""), rows)


def origins(found: Found) -> str:
    """Where and when the files were measured: a row for every combination that occurs."""
    seen: dict[tuple[str, ...], list[str]] = {}
    for result in found.results:
        origin, machine = result.origin, result.origin.machine
        versions = ", ".join(f"{name} {number}" for name, number in origin.versions.items())
        where = f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb:g} GB, {machine.system}"
        commit = origin.commit[:10] + (" and changes" if origin.changed else "")
        key = (commit, result.set, str(machine.threads), where, versions)
        seen.setdefault(key, []).append(origin.date.strftime("%Y-%m-%d %H:%M"))
    rows = [
        (*key[:3], key[3], key[4], f"{min(dates)} to {max(dates)} UTC, {len(dates)} files")
        for key, dates in seen.items()
    ]
    return table(("commit", "set", "threads", "machine", "versions", "measured"), rows)


def cell(row: Timed) -> str:
    """Ratio, and in brackets floor over time."""
    reached = "" if row.floor is None else f" ({row.floor / row.ratio:.2f})"
    return f"{row.ratio:.2f}{reached}"


def grid_table(found: Found, passes: Pass, granularity: str) -> str:
    """Ratios over the grid: a row per tokens, width and rank, a column per pool size, and PEFT's LoRA."""
    cells: dict[Key, dict[int, str]] = {}
    lora: dict[Key, str] = {}
    base: dict[tuple[int, int], float] = {}
    for row in found.rows("grid", passes):
        at = row.where
        key = (at.tokens, at.width, at.rank)
        if row.case == PLAIN:
            base[at.tokens, at.width] = row.median_ms
        elif row.case == LORA:
            lora[key] = cell(row)
        elif at.granularity == granularity:
            cells.setdefault(key, {})[at.experts] = cell(row)
    pools = sorted({experts for of_key in cells.values() for experts in of_key})
    head = ("T", "d", "r", "two nn.Linear, ms", "PEFT LoRA", *(f"N = {experts}" for experts in pools))
    rows = [
        (
            *map(str, key),
            number(base[key[:2]]),
            lora[key],
            *(cells[key].get(experts, "–") for experts in pools),
        )
        for key in sorted(cells, key=lambda key: (key[1], key[0], key[2]))
    ]
    return table(head, rows)


def peers_table(found: Found, passes: Pass) -> str:
    """Every peer at N = 8: its ratio to the plain projections, and how many times faster prw is."""
    rows = []
    for key in found.keys("peers", passes):
        eight = max(row.where.experts for row in found.rows("peers", passes))
        ours = found.ratio("peers", passes, "prw", key, eight)
        compared = [
            (LORA, 1),
            ("prw", 1),
            ("prw", eight),
            *((name, eight) for name in (*ROUTED_PEERS, COMPILED)),
        ]
        for name, experts in compared:
            ratio = found.ratio("peers", passes, name, key, experts)
            if ratio is None or ours is None:
                continue
            faster, added = ratio / ours, (ratio - 1) / (ours - 1) if ours > 1 else None
            win = (
                ""
                if (name, experts) == ("prw", eight)
                else f"{faster:.2f}"
                if faster >= 1
                else f"**{faster:.2f}**"
            )
            rows.append((*map(str, key), f"{name}, N = {experts}", number(ratio), win, number(added)))
    head = (
        "T",
        "d",
        "r",
        "case",
        "ratio to two nn.Linear",
        "prw N = 8 is faster, times",
        "added cost, times prw's",
    )
    return table(head, rows)


def kernels_table(found: Found, passes: Pass) -> str:
    """Every kernel by name, and what the default took."""
    names = sorted({row.case for row in found.rows("kernels", passes)} - {PLAIN})
    points = {
        (row.where.tokens, row.where.width, row.where.rank, row.where.experts)
        for row in found.rows("kernels", passes)
        if row.case != PLAIN
    }
    rows = []
    for point in sorted(points, key=lambda point: (point[1], point[0], point[2], point[3])):
        ratios = [found.ratio("kernels", passes, name, point[:3], point[3]) for name in names]
        best = min(ratio for ratio in ratios if ratio is not None)
        marked = [f"**{number(ratio)}**" if ratio == best else number(ratio) for ratio in ratios]
        rows.append((*map(str, point), *marked))
    return table(("T", "d", "r", "N", *(name if name != "prw" else "prw (auto)" for name in names)), rows)


def skew_table(found: Found) -> str:
    """The same pool under even and uneven routing."""
    rows = []
    for passes, words in PASSES:
        for row in found.rows("skew", passes):
            if row.case == "prw" and row.routed is not None:
                at, share = row.where, row.routed
                size = (str(at.tokens), str(at.width), str(at.rank), str(at.experts), words)
                rows.append((*size, at.skew, f"{share.newest:.2f}", cell(row)))
    return table(("T", "d", "r", "N", "pass", "routing", "share of the newest", "ratio (floor/time)"), rows)


def memory_table(found: Found) -> str:
    """Activation memory of every case."""
    rows = [
        (
            str(row.where.tokens),
            str(row.where.width),
            str(row.where.rank or "–"),
            row.case + (f", N = {row.where.experts}" if row.where.experts else ""),
            row.where.granularity if row.case == "prw" else "",
            f"{row.saved_mib:.1f}",
            f"{row.peak_mib:.1f}",
        )
        for row in found.kept()
    ]
    return table(("T", "d", "r", "case", "", "kept for backward, MiB", "peak, MiB"), rows)


def flux_table(found: Found) -> str:
    """Steps of a whole model."""
    rows = [
        (
            str(result.model["width"]),
            str(result.model["rank"]),
            step.what,
            step.case,
            f"{step.median_ms:.0f} ± {step.iqr_ms:.0f}",
            f"{step.ratio:.3f} ± {step.ratio_iqr:.3f}",
            f"{step.ratio_to_lora:.3f}" if step.ratio_to_lora <= 1 else f"**{step.ratio_to_lora:.3f}**",
            f"{step.trainable:,}",
        )
        for result, step in found.steps()
    ]
    head = ("d", "r", "step", "case", "ms", "ratio to plain", "ratio to PEFT LoRA", "trained numbers")
    return table(head, rows)


def generation_table(found: Found) -> str:
    """Every way of drawing."""
    rows = [
        (
            str(result.model["width"]),
            f"{row.text}, {row.noise}, {row.source}",
            row.case,
            f"{row.median_ms / 1e3:.2f} ± {row.iqr_ms / 1e3:.2f}",
            f"{row.ratio:.3f}" if row.case != PLAIN_TEXT else "1",
            f"{row.kontext_ratio:.2f}" if row.kontext_ratio >= 1 else f"**{row.kontext_ratio:.2f}**",
            f"{row.weights_mib:.0f}",
            f"{row.peak_mib:.1f}",
        )
        for result, row in found.drawn()
    ]
    head = ("d", "tokens of text, noise, source", "case", "seconds", "ratio to text alone")
    return table((*head, f"faster than {KONTEXT}, times", "weights, MiB", "peak, MiB"), rows)

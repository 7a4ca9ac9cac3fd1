"""Writes docs/benchmarks.md (from page.md), its plots, and the tables of docs/recipes/data.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.cases import COMPILED, KONTEXT, LORA, OURS, PLAIN, PLAIN_TEXT, ROUTED_PEERS, gpu_groups
from benchmarks.plots import PLOTS
from benchmarks.report import GPU_TARGETS, PASSES, Found, Key, gpu_verdicts, key_of, load, verdicts
from benchmarks.schema import Pass, Result, Row
from benchmarks.store import CPU, ROOT, committed_gpus, read

PAGE, TEMPLATE = ROOT / "docs" / "benchmarks.md", Path(__file__).with_name("page.md")
DATA_TEMPLATE = TEMPLATE.with_name("data.md")
INPUT_RESULT, INPUT_PAGE = CPU / "input.json", ROOT / "docs" / "recipes" / "data.md"
BEGIN, END = "<!-- input benchmark: begin, generated -->", "<!-- input benchmark: end -->"
INPUT_TARGET = 0.10  # largest share of a tiny step outside the model, with two workers
BUSY = (
    "\n\n**The machine was busy with other work**, which held most of its cores: rates are far below "
    "those of an idle one, workers found no core of their own, and small differences are none. "
    "What a cache saves, and the share outside the model, were taken under one load."
)
NONE_YET = "not yet measured on a GPU"


def page(found: Found) -> str:
    """Fill the template with tables."""
    filled = {
        "provisional": provisional(found),
        "origins": origins(found),
        "summary": summary(found),
        "verdicts": table("target | measured | ", ((v.target, v.measured, v.word) for v in verdicts(found))),
        "skew": skew_table(found),
        "memory": memory_table(found) + plain_share(found),
        "flux": flux_table(found),
        "generation": generation_table(found),
        "gpu": gpu_table(committed_gpus([group.name for group in gpu_groups("full")])),
    }
    for passes, _ in PASSES:
        filled |= {f"grid_{passes}_{one}": grid_table(found, passes, one) for one in ("token", "sample")}
        filled[f"peers_{passes}"] = peers_table(found, passes)
        filled[f"kernels_{passes}"] = kernels_table(found, passes)
    return TEMPLATE.read_text(encoding="utf-8").format(**filled)


def table(head: str, rows: Iterable[Sequence[object]]) -> str:
    """Write a table; its head is one text with | between the columns."""
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def number(value: float | None) -> str:
    """Write a number, or a dash where nothing was measured."""
    return "–" if value is None else f"{value:.2f}"


def bold_if(loss: bool, text: str) -> str:
    """Make a loss bold."""
    return f"**{text}**" if loss else text


def provisional(found: Found) -> str:
    """Say so where the results are not the whole grid on unchanged code."""
    if all(result.set == "full" and not result.origin.changed for result in found.results):
        return ""
    return "These results are **provisional**: not all of them are of the full set and of unchanged code.\n\n"


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
    rows = [(*key, f"{min(dates)} to {max(dates)} UTC, {len(dates)} files") for key, dates in seen.items()]
    return table("commit | set | threads | machine | versions | measured", rows)


def summary(found: Found) -> str:
    """Say in a sentence how many targets were met, and which were not."""
    judged = [verdict for verdict in verdicts(found) if verdict.met is not None]
    missed = [verdict.target for verdict in judged if not verdict.met]
    said = f"{len(judged) - len(missed)} of {len(judged)} targets were met."
    return f"**{said}**" + (f" Not met: {'; '.join(missed)}." if missed else "")


def cell(row: Row) -> str:
    """Ratio, and in brackets floor over time."""
    return f"{row.ratio:.2f}" + ("" if row.floor is None else f" ({row.floor / row.ratio:.2f})")


def grid_table(found: Found, passes: Pass, granularity: str) -> str:
    """Ratios over the grid: a row per tokens, width and rank, a column per pool size, and PEFT's LoRA."""
    cells: dict[Key, dict[int, str]] = {}
    lora: dict[Key, str] = {}
    base: dict[tuple[int, int], float] = {}
    for row in found.rows("grid", passes):
        key = key_of(row)
        if row.case == PLAIN:
            base[key[:2]] = row.median_ms
        elif row.case == LORA:
            lora[key] = cell(row)
        elif row.point.granularity == granularity:
            cells.setdefault(key, {})[row.point.experts] = cell(row)
    pools = sorted({experts for row in cells.values() for experts in row})
    rows = [
        (*key, number(base[key[:2]]), lora[key], *(cells[key].get(experts, "–") for experts in pools))
        for key in sorted(cells, key=lambda key: (key[1], key[0], key[2]))
    ]
    columns = ("T | d | r | two nn.Linear, ms | PEFT LoRA", *(f"N = {experts}" for experts in pools))
    return table(" | ".join(columns), rows)


def peers_table(found: Found, passes: Pass) -> str:
    """Every peer at N = 8: its ratio to the plain projections, and how many times faster prw is."""
    rows = []
    for key in found.keys("peers", passes):
        eight = max(row.point.experts for row in found.rows("peers", passes))
        ours = found.ratio("peers", passes, OURS, key, eight)
        for name, experts in (
            (LORA, 1), (OURS, 1), (OURS, eight), *((name, eight) for name in (*ROUTED_PEERS, COMPILED)),
        ):  # fmt: skip
            ratio = found.ratio("peers", passes, name, key, experts)
            if ratio is None or ours is None:
                continue
            faster, added = ratio / ours, (ratio - 1) / (ours - 1) if ours > 1 else None
            win = "" if (name, experts) == (OURS, eight) else bold_if(faster < 1, f"{faster:.2f}")
            rows.append((*key, f"{name}, N = {experts}", number(ratio), win, number(added)))
    columns = "prw N = 8 is faster, times | added cost, times prw's"
    return table(f"T | d | r | case | ratio to two nn.Linear | {columns}", rows)


def kernels_table(found: Found, passes: Pass) -> str:
    """Every kernel by name, and what the default took."""
    measured = [row for row in found.rows("kernels", passes) if row.case != PLAIN]
    names = sorted({row.case for row in measured})
    points = {(*key_of(row), row.point.experts) for row in measured}
    rows = []
    for point in sorted(points, key=lambda point: (point[1], point[0], point[2], point[3])):
        ratios = [found.ratio("kernels", passes, name, point[:3], point[3]) for name in names]
        best = min(ratio for ratio in ratios if ratio is not None)
        rows.append((*point, *(bold_if(ratio == best, number(ratio)) for ratio in ratios)))
    columns = (name if name != OURS else "prw (auto)" for name in names)
    return table(" | ".join(("T | d | r | N", *columns)), rows)


def skew_table(found: Found) -> str:
    """The same pool under even and uneven routing."""
    rows = []
    for passes, words in PASSES:
        for row in found.rows("skew", passes):
            if row.case == OURS and row.routed is not None:
                size = (*key_of(row), row.point.experts, words, row.point.routing)
                rows.append((*size, f"{row.routed.newest:.2f}", cell(row)))
    return table("T | d | r | N | pass | routing | share of the newest | ratio (floor/time)", rows)


def memory_table(found: Found) -> str:
    """Activation memory of every case."""
    rows = []
    for row in found.memory():
        at, granularity = row.point, row.point.granularity if row.case == OURS else ""
        case = row.case + (f", N = {at.experts}" if at.experts else "")
        sizes = f"{row.saved_mib:.1f}", f"{row.peak_mib:.1f}"
        rows.append((at.tokens, at.width, at.rank or "–", case, granularity, *sizes))
    return table("T | d | r | case |  | kept for backward, MiB | peak, MiB", rows)


def plain_share(found: Found) -> str:
    """Say how much of Arrow's peak the plain projections have already: more than a third cannot be beaten."""
    plain = {key_of(row)[:2]: row.peak_mib for row in found.memory() if row.case == PLAIN}
    arrow = [row for row in found.memory() if (row.case, row.point.experts) == ("PEFT Arrow", 4)]
    shares = [100 * plain[key_of(row)[:2]] / row.peak_mib for row in arrow]
    if not shares:
        return ""
    span = f"{min(shares):.0f} to {max(shares):.0f} %"
    return f"\n\nThe two plain projections alone have {span} of the peak of Arrow with N = 4.\n"


def flux_table(found: Found) -> str:
    """Steps of a whole model."""
    rows = []
    for result, step in found.steps():
        case = result.setup["width"], result.setup["rank"], step.what, step.case
        time, ratio = f"{step.median_ms:.0f} ± {step.iqr_ms:.0f}", f"{step.ratio:.3f} ± {step.ratio_iqr:.3f}"
        to_lora = bold_if(step.ratio_to_lora > 1, f"{step.ratio_to_lora:.3f}")
        rows.append((*case, time, ratio, to_lora, f"{step.trainable:,}"))
    return table("d | r | step | case | ms | ratio to plain | ratio to PEFT LoRA | trained numbers", rows)


def generation_table(found: Found) -> str:
    """Every way of generating a picture."""
    rows = []
    for result, row in found.pictures():
        case = result.setup["width"], f"{row.text}, {row.noise}, {row.source}", row.case
        time = f"{row.median_ms / 1e3:.2f} ± {row.iqr_ms / 1e3:.2f}"
        ratio = f"{row.ratio:.3f}" if row.case != PLAIN_TEXT else "1"
        kontext = bold_if(row.kontext_ratio < 1, f"{row.kontext_ratio:.2f}")
        rows.append((*case, time, ratio, kontext, f"{row.weights_mib:.0f}", f"{row.peak_mib:.1f}"))
    columns = f"ratio to text alone | faster than {KONTEXT}, times | weights, MiB | peak, MiB"
    return table(f"d | tokens of text, noise, source | case | seconds | {columns}", rows)


def gpu_table(gpus: Sequence[Sequence[Result]]) -> str:
    """Write the targets, and for each GPU what was measured; the worst point of each target counts."""
    words = {True: "met", False: "**not met**", None: ""}
    columns = [[f"{v.measured} {words[v.met]}".strip() for v in gpu_verdicts(results)] for results in gpus]
    names = [f"{one[0].origin.machine.device}, {one[0].origin.commit[:9]}" for one in gpus] or ["measured"]
    rows = [
        (one.against, one.must, one.good, one.floor, *measured)
        for one, *measured in zip(GPU_TARGETS, *(columns or [[NONE_YET] * len(GPU_TARGETS)]), strict=True)
    ]
    said = "" if gpus else "None of them has been measured yet.\n"
    return f"{said}\n{table(' | '.join(('against | must | good | physical floor', *names)), rows)}"


def input_page(result: Result, text: str) -> str:
    """Give the page on data with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{input_tables(result)}\n{END}{after}"


def input_tables(result: Result) -> str:
    """The two tables with what has to be known to read them."""
    origin, machine, load = result.origin, result.origin.machine, result.load or (0.0, 0.0)
    ways = {(one.source, one.workers): [] for one in result.pipelines}  # without a cache, then with one
    for one in result.pipelines:
        ways[one.source, one.workers].append(f"{one.images_per_second:.1f} (± {one.iqr:.1f})")
    shares = []
    for step in result.shares:
        parts = (f"{one:.1f} ms" for one in (step.waiting_ms, step.preparing_ms, step.rest_ms))
        outside = f"{100 * step.outside:.1f} %"
        shares.append((step.stage, step.workers, f"{step.step_ms:.0f} ms", *parts, outside))
    worst, columns = max(result.shares, key=lambda step: step.outside), "step | waiting | preparing | rest"
    return DATA_TEMPLATE.read_text(encoding="utf-8").rstrip().format(
        date=f"{origin.date:%Y-%m-%d}", commit=origin.commit[:7], cores=machine.cores, cpu=machine.cpu,
        threads=machine.threads, before=f"{load[0]:.1f}", after=f"{load[1]:.1f}", rounds=result.rounds,
        busy=BUSY if max(load) > machine.cores + 1 else "",
        ways=table(
            "source | workers | examples a second, nothing kept | all kept",
            ((*way, *speeds) for way, speeds in ways.items()),
        ),
        shares=table(f"stage of the tiny preset | workers | {columns} | outside the model", shares),
        target=f"{100 * INPUT_TARGET:.0f}", met="met" if worst.outside <= INPUT_TARGET else "missed",
        worst=f"{100 * worst.outside:.1f}", stage=worst.stage, **result.setup,
    )  # fmt: skip


def main() -> None:
    """Write the page, its plots, and the tables of the page on data."""
    found, data = load(), INPUT_PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")
    for name, plot in PLOTS.items():
        plot(found, PAGE.parent / "assets" / name)
    INPUT_PAGE.write_text(input_page(read(INPUT_RESULT), data), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Writes docs/benchmarks.md, its plots and the tables of docs/recipes/data.md from the committed results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.cases import COMPILED, KONTEXT, LORA, PLAIN, PLAIN_TEXT, ROUTED_PEERS, gpu_groups
from benchmarks.plots import PLOTS
from benchmarks.report import GPU_TARGETS, PASSES, Found, Key, gpu_verdicts, load, verdicts
from benchmarks.schema import Pass, Pipeline, Result, Row
from benchmarks.store import CPU, ROOT, committed_gpus, read

PAGE = ROOT / "docs" / "benchmarks.md"
INPUT_RESULT, INPUT_PAGE = CPU / "input.json", ROOT / "docs" / "recipes" / "data.md"
BEGIN, END = "<!-- input benchmark: begin, generated -->", "<!-- input benchmark: end -->"
INPUT_TARGET = 0.10
"""Largest share of a tiny step outside the model, with two workers."""
NONE_YET = "not yet measured on a GPU"
WORDS = {True: "met", False: "**not met**", None: ""}

HEAD = """\
<!-- Written by scripts/benchmark_report from benchmarks/results/cpu/; do not edit. -->
# Benchmarks

What routed experts on K and V cost, measured on a CPU in float32, beside the two plain projections and
beside every peer. All cases of a group run in turn in one process; times are medians, and ratios are
medians of the ratios of each round. The contract, what each baseline is and what trains in it, and how to
measure again: `benchmarks/README.md`.

"""

TARGETS = """
## What was to be shown

Computed from the files in `benchmarks/results/cpu/`. A target holds only if it holds at every measured
point with T ≥ 1024; the worst point is named. Beside a peer, what the ratio would be if prw stood at its
floor is given too: a target above that cannot be reached on this machine.

"""

GRID = """
## The grid

Ratio to the two plain projections; in brackets floor / time, where 1 is what multiplications alone allow:
`1 + 2 r k / d` forward, `1 + (2 + p) r k / d` forward and backward, with k = 1 choice and p the share of
the newest expert, counted. Only the newest expert and its router vectors train. The first column of times
is the two plain projections'.

![Ratio against the number of experts](assets/benchmarks-experts.png)

![Ratio against the rank](assets/benchmarks-rank.png)

![Floor over time](assets/benchmarks-floor.png)
"""

PEERS = """
## Beside every peer

Eight experts, routed by token. Numbers in bold are losses: there the peer is faster. *Added cost* leaves
out what the two plain projections take: (ratio − 1) over prw's (ratio − 1).

![Every peer](assets/benchmarks-peers.png)
"""

KERNELS = """
## Kernels by name

Ratios to the two plain projections; the fastest of a row is bold. This is what the thresholds of
`kernel="auto"` are judged by.
"""

SKEW = """
## Uneven routing

"""

MEMORY = """
## Activation memory

One forward and backward. *Kept* is what autograd holds for the backward, parameters not; *peak* the most
allocated at once above the resting level, outputs and gradients included.

![Activation memory](assets/benchmarks-memory.png)

"""

FLUX = """
## A whole FLUX

diffusers' FLUX with FLUX.1's proportions and fewer blocks (one double, two single), 1024 picture and 512
text tokens (576 and 288 at d = 3072); experts and PEFT's LoRA sit on the same projections. A training
step is forward, loss, backward and AdamW; prw's also records its routing and adds the veteran loss.
Ratios to PEFT LoRA above 1 are bold: there prw is slower.

![FLUX](assets/benchmarks-flux.png)

"""


GENERATION = """
## Drawing a picture from a source

28 steps with one source of as many tokens as the picture, by a FLUX with FLUX.1's proportions (one double,
two single blocks), to latents. Text alone is diffusers' `FluxPipeline` without a source and without experts;
`FluxKontextPipeline` puts the source's tokens beside the noise in every step. With `source_timestep: zero`
CoLoGen runs the source once and keeps its keys and values (*cached*); with `same` it cannot. The peak is
above the weights; weights include the experts'.

![Drawing a picture](assets/benchmarks-generation.png)

"""

GPU = """
## On a GPU

`python -m benchmarks.gpu` on a machine with a CUDA device is the whole measurement, made for under ten
minutes: it checks every kernel against the reference, times those that are right, and writes one file with
ratios, measured ceilings and the limit of every case (`benchmarks/README.md`, section "On a GPU").

The plot is a model and not a measurement. It takes each kernel's operations and bytes at T = 4096,
d = 3072 in bfloat16 and the larger of the two times that 798 TFLOP/s and 3.0 TB/s allow; a routed shrink
or expand is taken at 70 % of that (`benchmarks/gpu_model.py`). It knows no launch gaps, waves or caches.

![Model of an H100](assets/benchmarks-gpu-model.png)

Targets for one H100: bfloat16, cold cache, replayed graphs, T = 4096, even routing.
"""


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


def cell(row: Row) -> str:
    """Ratio, and in brackets floor over time."""
    reached = "" if row.floor is None else f" ({row.floor / row.ratio:.2f})"
    return f"{row.ratio:.2f}{reached}"


def grid_table(found: Found, passes: Pass, granularity: str) -> str:
    """Ratios over the grid: a row per tokens, width and rank, a column per pool size, and PEFT's LoRA."""
    cells: dict[Key, dict[int, str]] = {}
    lora: dict[Key, str] = {}
    base: dict[tuple[int, int], float] = {}
    for row in found.rows("grid", passes):
        at = row.point
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
        eight = max(row.point.experts for row in found.rows("peers", passes))
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
        (row.point.tokens, row.point.width, row.point.rank, row.point.experts)
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
                at, share = row.point, row.routed
                size = (str(at.tokens), str(at.width), str(at.rank), str(at.experts), words)
                rows.append((*size, at.routing, f"{share.newest:.2f}", cell(row)))
    return table(("T", "d", "r", "N", "pass", "routing", "share of the newest", "ratio (floor/time)"), rows)


def memory_table(found: Found) -> str:
    """Activation memory of every case."""
    rows = [
        (
            str(row.point.tokens),
            str(row.point.width),
            str(row.point.rank or "–"),
            row.case + (f", N = {row.point.experts}" if row.point.experts else ""),
            row.point.granularity if row.case == "prw" else "",
            f"{row.saved_mib:.1f}",
            f"{row.peak_mib:.1f}",
        )
        for row in found.memory()
    ]
    return table(("T", "d", "r", "case", "", "kept for backward, MiB", "peak, MiB"), rows)


def flux_table(found: Found) -> str:
    """Steps of a whole model."""
    rows = [
        (
            str(result.setup["width"]),
            str(result.setup["rank"]),
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
            str(result.setup["width"]),
            f"{row.text}, {row.noise}, {row.source}",
            row.case,
            f"{row.median_ms / 1e3:.2f} ± {row.iqr_ms / 1e3:.2f}",
            f"{row.ratio:.3f}" if row.case != PLAIN_TEXT else "1",
            f"{row.kontext_ratio:.2f}" if row.kontext_ratio >= 1 else f"**{row.kontext_ratio:.2f}**",
            f"{row.weights_mib:.0f}",
            f"{row.peak_mib:.1f}",
        )
        for result, row in found.pictures()
    ]
    head = ("d", "tokens of text, noise, source", "case", "seconds", "ratio to text alone")
    return table((*head, f"faster than {KONTEXT}, times", "weights, MiB", "peak, MiB"), rows)


def summary(found: Found) -> str:
    """Say in a sentence how many targets were met, and which were not."""
    judged = [verdict for verdict in verdicts(found) if verdict.met is not None]
    missed = [verdict.target for verdict in judged if not verdict.met]
    said = f"{len(judged) - len(missed)} of {len(judged)} targets were met."
    return f"**{said}**" + (f" Not met: {'; '.join(missed)}." if missed else "")


def plain_share(found: Found) -> str:
    """Say how much of Arrow's peak the plain projections have already: more than a third cannot be beaten."""
    plain = {(row.point.tokens, row.point.width): row.peak_mib for row in found.memory() if row.case == PLAIN}
    shares = [
        plain[row.point.tokens, row.point.width] / row.peak_mib
        for row in found.memory()
        if row.case == "PEFT Arrow" and row.point.experts == 4
    ]
    if not shares:
        return ""
    span = f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %"
    return f"\n\nThe two plain projections alone have {span} of the peak of Arrow with N = 4.\n"


def provisional(found: Found) -> str:
    """Say so where the results are not the whole grid on unchanged code."""
    if all(result.set == "full" and not result.origin.changed for result in found.results):
        return ""
    return "These results are **provisional**: not all of them are of the full set and of unchanged code.\n\n"


def page(found: Found) -> str:
    """Write the page."""
    parts = [HEAD, provisional(found), origins(found), "\n", TARGETS]
    parts += [summary(found), "\n\n", verdict_table(found), "\n", GRID]
    for passes, words in PASSES:
        for granularity in ("token", "sample"):
            title = f"\n### {words.capitalize()}, by {granularity}\n\n"
            parts += [title, grid_table(found, passes, granularity), "\n"]
    for head, write in ((PEERS, peers_table), (KERNELS, kernels_table)):
        parts.append(head)
        for passes, words in PASSES:
            parts += [f"\n{words.capitalize()}:\n\n", write(found, passes), "\n"]
    for head, body in (
        (SKEW, skew_table(found)),
        (MEMORY, memory_table(found) + plain_share(found)),
        (FLUX, flux_table(found)),
        (GENERATION, generation_table(found)),
        (GPU, gpu_body(committed_gpus([group.name for group in gpu_groups("full")]))),
    ):
        parts += [head, body, "\n"]
    return "".join(parts)


def gpu_body(gpus: Sequence[Sequence[Result]]) -> str:
    """Write the targets, and for each GPU what was measured; the worst point of each target counts."""
    columns = [[NONE_YET] * len(GPU_TARGETS)]
    if gpus:
        columns = [
            [f"{one.measured} {WORDS[one.met]}".strip() for one in gpu_verdicts(results)] for results in gpus
        ]
    names = [f"{one[0].origin.machine.device}, {one[0].origin.commit[:9]}" for one in gpus] or ["measured"]
    targets = [(one.against, one.must, one.good, one.floor) for one in GPU_TARGETS]
    rows = ((*target, *measured) for target, *measured in zip(targets, *columns, strict=True))
    words = "" if gpus else "None of them has been measured yet.\n"
    return f"{words}\n{table(('against', 'must', 'good', 'physical floor', *names), rows)}"


def input_tables(result: Result) -> str:
    """The two tables with what has to be known to read them."""
    machine, shape = result.origin.machine, result.setup
    worst = max(result.shares, key=lambda step: step.outside)
    met = "met" if worst.outside <= INPUT_TARGET else "missed"
    return "\n".join(
        [
            f"Measured on {result.origin.date:%Y-%m-%d} at commit `{result.origin.commit[:7]}` on "
            f"{machine.cores} cores of {machine.cpu}, {machine.threads} thread(s) of torch. Load of the "
            f"machine: {result.load[0]:.1f} before and {result.load[1]:.1f} after. Files are "
            f"{shape['stored']}, trained at {shape['trained']} in batches of {shape['batch']}; medians of "
            f"{result.rounds} rounds with interquartile ranges. An example is two pictures and a prompt.",
            *busy(result),
            "",
            "| source | workers | examples a second, nothing kept | all kept |",
            "|---|---|---|---|",
            *input_rows(result),
            "",
            "| stage of the tiny preset | workers | step | waiting | preparing | rest | outside the model |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {step.stage} | {step.workers} | {step.step_ms:.0f} ms | {step.waiting_ms:.1f} ms | "
                f"{step.preparing_ms:.1f} ms | {step.rest_ms:.1f} ms | {100 * step.outside:.1f} % |"
                for step in result.shares
            ),
            "",
            f"Target: at most {100 * INPUT_TARGET:.0f} % of a tiny step outside the model with two workers; "
            f"{met}: the largest is {100 * worst.outside:.1f} % ({worst.stage}).",
        ]
    )


def busy(result: Result) -> Iterator[str]:
    """What a busy machine does to the numbers, where it was busy."""
    if max(result.load) > result.origin.machine.cores + 1:
        yield ""
        yield (
            "**The machine was busy with other work**, which held most of its cores: rates are far below "
            "those of an idle one, workers found no core of their own, and small differences are none. "
            "What a cache saves, and the share outside the model, were taken under one load."
        )


def input_rows(result: Result) -> Iterator[str]:
    found = {(way.source, way.workers, way.cache): way for way in result.pipelines}
    for source, workers in dict.fromkeys((way.source, way.workers) for way in result.pipelines):
        plain, kept = (speed(found[source, workers, cache]) for cache in ("none", "full"))
        yield f"| {source} | {workers} | {plain} | {kept} |"


def speed(way: Pipeline) -> str:
    return f"{way.images_per_second:.1f} (± {way.iqr:.1f})"


def input_page(result: Result, text: str) -> str:
    """The page with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{input_tables(result)}\n{END}{after}"


def main() -> None:
    """Write the page, its plots, and the tables of the page on data."""
    found = load()
    PAGE.write_text(page(found), encoding="utf-8")
    for name, plot in PLOTS.items():
        plot(found, PAGE.parent / "assets" / name)
    INPUT_PAGE.write_text(
        input_page(read(INPUT_RESULT), INPUT_PAGE.read_text(encoding="utf-8")), encoding="utf-8"
    )


if __name__ == "__main__":
    main()

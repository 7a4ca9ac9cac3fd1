"""Writes the tables of docs/recipes/data.md from the result: `python -m benchmarks.input.report`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.input.schema import InputResult, Pipeline, read
from benchmarks.origin import ROOT

RESULT = ROOT / "benchmarks" / "results" / "input" / "input.json"
PAGE = ROOT / "docs" / "recipes" / "data.md"
BEGIN, END = "<!-- input benchmark: begin, generated -->", "<!-- input benchmark: end -->"
TARGET = 0.10
"""Largest share of a tiny step outside the model, with two workers."""


def tables(result: InputResult) -> str:
    """The two tables with what has to be known to read them."""
    machine, shape = result.origin.machine, result.pictures
    worst = max(result.steps, key=lambda step: step.outside)
    met = "met" if worst.outside <= TARGET else "missed"
    return "\n".join(
        [
            f"Measured on {result.origin.date:%Y-%m-%d} at commit `{result.origin.commit[:7]}` on "
            f"{machine.cores} cores of {machine.cpu}, {machine.threads} thread(s) of torch. Load of the "
            f"machine: {result.load[0]:.1f} before and {result.load[1]:.1f} after. Files are "
            f"{shape['stored']}, trained at {shape['trained']} in batches of {shape['batch']}; medians of "
            f"{result.rounds} rounds with interquartile ranges. An example is two pictures and a prompt.",
            *_warning(result),
            "",
            "| source | workers | examples a second, nothing kept | all kept |",
            "|---|---|---|---|",
            *_rows(result),
            "",
            "| stage of the tiny preset | workers | step | waiting | preparing | rest | outside the model |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {step.stage} | {step.workers} | {step.step_ms:.0f} ms | {step.waiting_ms:.1f} ms | "
                f"{step.preparing_ms:.1f} ms | {step.rest_ms:.1f} ms | {100 * step.outside:.1f} % |"
                for step in result.steps
            ),
            "",
            f"Target: at most {100 * TARGET:.0f} % of a tiny step outside the model with two workers; {met}: "
            f"the largest is {100 * worst.outside:.1f} % ({worst.stage}).",
        ]
    )


def _warning(result: InputResult) -> Iterator[str]:
    """What a busy machine does to the numbers, where it was busy."""
    if max(result.load) > result.origin.machine.cores + 1:
        yield ""
        yield (
            "**The machine was busy with other work**, which held most of its cores: rates are far below "
            "those of an idle one, workers found no core of their own, and small differences are none. "
            "What a cache saves, and the share outside the model, were taken under one load."
        )


def _rows(result: InputResult) -> Iterator[str]:
    found = {(way.source, way.workers, way.cache): way for way in result.pipelines}
    for source, workers in dict.fromkeys((way.source, way.workers) for way in result.pipelines):
        plain, kept = (_speed(found[source, workers, cache]) for cache in ("none", "full"))
        yield f"| {source} | {workers} | {plain} | {kept} |"


def _speed(way: Pipeline) -> str:
    return f"{way.images_per_second:.1f} (± {way.iqr:.1f})"


def page(result: InputResult, text: str) -> str:
    """The page with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables(result)}\n{END}{after}"


def main(path: Path = PAGE) -> None:
    """Write the page."""
    path.write_text(page(read(RESULT), path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Prints a diagnosis: tables at a terminal, the same in plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from recipes.cologen.diagnosis.diagnose import Diagnosis

COMPUTED = "computed, not yet measured on a GPU"
Rows = Iterator[tuple[str, ...]]


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print all that was found, problems last."""
    facts = diagnosis.facts
    _table(console, "Environment", ("what", "found"), _environment(facts))
    if "parameters" in facts:
        _table(console, "What trains", ("what", "number"), _parameters(facts["parameters"]))
    if "memory" in facts:
        title = f"Memory of one device, {facts['memory']['pixels']} ({COMPUTED})"
        _table(console, title, ("part", "GB", "what"), _memory(facts["memory"]))
    if facts.get("measured_peak_bytes") is not None:
        _say(console, f"measured in the probe: {facts['measured_peak_bytes'] / 1e9:.2f} GB allocated at most")
    if facts["data"] is not None:
        if facts["data"]["sets"]:
            heads: tuple[str, ...] = ("set", "records", "no caption", "left out", "licence", "stages")
            _table(console, "Data sets", heads, _sets(facts["data"]))
        for name, licence in facts["data"]["left_out_by_licence"].items():
            _say(console, f"left out by its licence: {name} ({licence})")
        for note in facts["data"]["notes"]:
            _say(console, f"note: {note}")
        for name, counts in facts["data"]["buckets"].items():
            listed = ", ".join(f"{bucket} {count:,}" for bucket, count in counts.items())
            _say(console, f"{name}, records by height x width: {listed}")
    heads = ("stage", "steps", "batch", "records", "epochs", "hours")
    _table(console, "Stages", heads, _stages(facts["stages"]))
    if not any("hours" in stage for stage in facts["stages"].values()):
        _say(console, "hours are not guessed: --probe takes three real steps of every stage on this machine")
    for warning in diagnosis.warnings:
        _say(console, f"warning: {warning}")
    for one in diagnosis.unchecked:
        _say(console, f"not checked, {one.about}: {one.why}. To have it checked: {one.how}.")
    for problem in diagnosis.problems:
        _say(console, f"problem, {problem.about}: {problem.message}")
    _say(console, _verdict(len(diagnosis.problems), len(diagnosis.unchecked)))


def _verdict(problems: int, unchecked: int) -> str:
    left = f"{unchecked} thing{'s' if unchecked > 1 else ''} could not be checked"
    if not problems:
        good = "nothing found that would keep this run from working"
        return f"{good}, but {left}" if unchecked else good
    bad = f"{problems} problem{'s' if problems > 1 else ''} would keep this run from working"
    return f"{bad}, and {left}" if unchecked else bad


def _environment(facts: dict[str, Any]) -> Rows:
    found = facts["environment"]
    packages = [f"{name} {version}" for name, version in found["packages"].items() if version]
    yield "python", found["python"]
    yield "packages", ", ".join(packages)
    gpus = ", ".join(found["gpus"])
    yield "device", f"{gpus} (CUDA {found['cuda']})" if gpus else f"CPU, {found['cores']} cores"
    yield "processes", str(found["processes"])
    yield "base", f"{facts['base']['path']} ({facts['base']['where']})"
    needed = found.get("needed_disk_bytes")
    room = f"{found['free_disk_bytes'] / 1e9:.1f} GB free at {found['output']}"
    yield "disk", room + (f", checkpoints need {needed / 1e9:.2f} GB" if needed is not None else "")


def _parameters(found: dict[str, Any]) -> Rows:
    yield "sites", f"{found['sites']:,}"
    yield "an expert", f"{found['per_expert']:,}"
    yield f"{found['experts']} experts", f"{found['all_experts']:,}"
    yield "routers", f"{found['routers']:,}"
    yield "trained at once", f"{found['trained_at_once']:,}"
    for name, count in found["base"].items():
        yield f"frozen: {name}", f"{count:,}"


def _memory(found: dict[str, Any]) -> Rows:
    for part in found["parts"]:
        yield part["name"], _gigabytes(part["bytes"]), part["note"]
    yield "all", _gigabytes(found["total_bytes"]), ""
    gpu = found["gpu"]
    if gpu is None:
        yield "device", "", "no GPU here; name one with --gpu or --gpu-memory"
        yield "this machine", _gigabytes(found["host_bytes"]), "where the run would work without a GPU"
    else:
        yield gpu["name"], _gigabytes(gpu["bytes"]), _fit(found["total_bytes"], gpu["bytes"], found["tight"])


def _fit(total: int, available: int, tight: bool) -> str:
    """How a step goes with the memory that there is."""
    left = available - total
    if left < 0:
        return "does not fit"
    room = f"{_gigabytes(left)} GB ({left / available:.0%}) left"
    return f"fits, tight: {room}, and nothing was measured on a GPU yet" if tight else f"fits, {room}"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}" if size >= 1e8 or not size else f"{size / 1e9:.1g}"


def _sets(card: dict[str, Any]) -> Rows:
    for part in card["sets"]:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in part["left_out"].items()) or "none"
        yield (
            part["name"],
            f"{part['records']:,}",
            f"{part['without_caption']:,}",
            left_out,
            part["licence"],
            ", ".join(part["stages"]),
        )


def _stages(stages: dict[str, Any]) -> Rows:
    for name, stage in stages.items():
        records = stage["records"] if isinstance(stage["records"], str) else f"{stage['records']:,}"
        epochs = "" if stage["epochs"] is None else f"{stage['epochs']:.2f}"
        hours = f"{stage['hours']:.3g}" if "hours" in stage else ""
        yield name, f"{stage['steps']:,}", str(stage["batch_size"]), records, epochs, hours


def _table(console: Console, title: str, heads: Sequence[str], rows: Rows) -> None:
    if not console.is_terminal:
        _say(console, title)
        for first, *cells in rows:
            named = [_plainly(head, cell) for head, cell in zip(heads[1:], cells, strict=True) if cell]
            _say(console, f"  {first}: {', '.join(named if len(cells) > 1 else cells)}")
        return
    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)


def _plainly(head: str, cell: str) -> str:
    """A cell away from its column: numbers before their unit, what explains itself as it is."""
    if head == "GB":
        return f"{cell} GB"
    return cell if head == "what" else f"{head} {cell}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)

"""The data card of a run: what it was trained on, under which licences, what was left out and why.

`data_card.json` is for programs, `data_card.md` says the same for people; both lie in the run's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prw.storage.atomic import write_text
from recipes.cologen.config.run import RunConfig
from recipes.cologen.data.annotators.annotate import Annotators
from recipes.cologen.data.licences import PERMISSIVE
from recipes.cologen.data.opening import DataSource
from recipes.cologen.data.sets import DataSet
from recipes.cologen.runs.files import CARD


def write_card(
    run: Path, config: RunConfig, data: DataSource, held_out: DataSource | None, annotators: Annotators
) -> None:
    """Write both files into a run's folder."""
    card = make_card(config, data, held_out, annotators)
    write_text(run / f"{CARD}.json", json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    write_text(run / f"{CARD}.md", "\n".join(_page(card)) + "\n")


def make_card(
    config: RunConfig, data: DataSource, held_out: DataSource | None, annotators: Annotators
) -> dict[str, Any]:
    """What both files say, as plain values."""
    return {
        "run": config.name,
        "source": config.data.source,
        "size": config.data.size,
        "licence_filter": config.data.licence,
        "sets": [_set_facts(part) for part in data.sets],
        "left_out_by_licence": dict(data.refused),
        "stages": {stage: _stage_facts(stage, data) for stage in config.stage_names},
        "annotators": {
            name: {"needs": one.needs, "fingerprint": one.fingerprint()} for name, one in annotators.items()
        },
        "held_out": config.data.held_out or ("world" if config.data.source == "world" else None),
        "held_out_sets": [_set_facts(part) for part in held_out.sets] if held_out is not None else [],
    }


def _set_facts(part: DataSet) -> dict[str, Any]:
    settings = part.settings
    return {
        "name": part.name,
        "layout": part.layout.name,
        "home": part.layout.home,
        "path": settings.path,
        "split": settings.split if settings.path.startswith(("hub:", "arrow:")) else None,
        "subset": settings.subset,
        "revision": settings.revision,
        "licence": part.licence,
        "commercial_use": part.licence in PERMISSIVE,
        "stages": list(part.tasks),
        "rows": len(part.rows),
        "left_out": dict(part.left_out),
        "without_caption": part.without_caption,
        "several_captions": part.several_captions,
        "records": len(part),
        "repeat": settings.repeat,
        "options": dict(part.options),
    }


def _stage_facts(stage: str, data: DataSource) -> dict[str, Any]:
    """How many records a stage's epoch has, and each set's share of them; None where it has none."""
    if data.place is not None:
        return {"records": data.place.num_records, "shares": {}}
    counts = {part.name: len(part) * part.settings.repeat for part in data.sets if stage in part.tasks}
    total = sum(counts.values())
    return {"records": total, "shares": {name: count / total for name, count in counts.items()}}


def _page(card: dict[str, Any]) -> Iterator[str]:
    yield f"# Data of the run {card['run']}"
    yield ""
    yield f"Pictures come from `{card['source']}`; licences let through: `{card['licence_filter']}`."
    if card["sets"]:
        yield from ("", "## Data sets", "")
        yield from _table(
            ("set", "layout", "from", "revision", "licence", "rows", "left out", "records", "stages"),
            [_cells(facts) for facts in card["sets"]],
        )
    listed = {one["name"]: f"{one['several_captions']:,}" for one in card["sets"] if one["several_captions"]}
    if listed:
        yield from ("", f"Rows with a list of captions, of which the first is read: {_listed(listed)}.")
    if card["left_out_by_licence"]:
        yield from ("", "Left out by their licence, neither opened nor read:", "")
        yield from (f"- {name} ({licence})" for name, licence in card["left_out_by_licence"].items())
    yield from ("", "## Stages", "")
    yield from _table(
        ("stage", "records an epoch", "shares"),
        [
            (stage, _count(facts["records"]), _listed({k: f"{v:.1%}" for k, v in facts["shares"].items()}))
            for stage, facts in card["stages"].items()
        ],
    )
    if card["annotators"]:
        yield from ("", "## Control maps that are made where none is stored", "")
        rows = [(name, one["needs"], one["fingerprint"]) for name, one in card["annotators"].items()]
        yield from _table(("map", "by", "fingerprint"), rows)
    yield from ("", "## Held out", "", card["held_out"] or "nothing")
    if card["held_out_sets"]:
        yield from ("", *(f"- {facts['name']}: {facts['path']}" for facts in card["held_out_sets"]))


def _cells(facts: dict[str, Any]) -> tuple[str, ...]:
    return (
        facts["name"],
        facts["layout"],
        f"{facts['home']} (`{facts['path']}`)",
        facts["revision"] or "not given",
        facts["licence"],
        _count(facts["rows"]),
        _listed({reason: f"{count:,}" for reason, count in facts["left_out"].items()}),
        _count(facts["records"]),
        ", ".join(facts["stages"]),
    )


def _count(number: int | None) -> str:
    return "endless" if number is None else f"{number:,}"


def _listed(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "none"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    yield from (f"| {' | '.join(row)} |" for row in rows)

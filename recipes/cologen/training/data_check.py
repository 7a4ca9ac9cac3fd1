"""Looks before the first step whether the pictures have what every stage to be trained needs.

Otherwise the last stage of a long run would be the first to find that, say, no picture has a pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from recipes.cologen.config import RunConfig
from recipes.cologen.data.record import MissingMetadataError
from recipes.cologen.data.sampler import derive_seed
from recipes.cologen.data.views import VIEWS
from recipes.cologen.errors import BrokenPictureError, CologenError, FolderDataError, PromptError
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.training.held_out_prompts import held_out_rule
from recipes.cologen.training.sources import DataSource, RecordSource
from recipes.cologen.training.validation import held_out_examples

MAX_RECORDS = 100
"""Records that are looked at, spread evenly over the folder."""
EXAMPLES_PER_STAGE = 48
"""Examples that are made of a stage at least: views choose by chance, and few records get more seeds."""
SHOWN_FAULTS = 10
ANY_STAGE = "any stage"
"""What a record that cannot be read is no good for."""


class Fault(NamedTuple):
    """What keeps one record from a stage."""

    stage: str
    record: str
    message: str
    broken: bool = False
    """Whether training would skip the record, instead of stopping."""
    incomplete: bool = False
    """Whether it lacks what a view needs."""


def check_sources(
    data: DataSource,
    config: RunConfig,
    stages: Sequence[str],
    model: FluxBase,
    say: Callable[[str], None],
) -> None:
    """Look at what each stage reads, what it replays included; the world needs no looking at.

    Args:
        data: What is trained on.
        config: Of the run.
        stages: Those that are to be trained.
        model: The base, for its tokenizers.
        say: Told of what is no fault, but worth knowing.

    Raises:
        DataSetError: No data set serves a stage.
        FolderDataError: As `check_data`.
    """
    if data.place is not None and data.place.num_records is None:
        return

    most = config.data.max_broken
    read = tuple(dict.fromkeys(task for stage in stages for task in (stage, *config.stages[stage].replay)))
    if data.place is not None:
        check_data(data.place.records, data.place.num_records or 0, read, model, most, say=say)
        return
    sources = {stage: data.stage(stage) for stage in read}
    for stage, source in sources.items():
        count = source.num_records or 0
        check_data(source.records, count, (stage,), model, most, skip_incomplete=True, say=say)


def check_held_out(held_out: DataSource, config: RunConfig, tasks: Sequence[str], model: FluxBase) -> None:
    """Make the very examples that validation will make, and read their prompts as the base will.

    A record that validation leaves out is no fault here either; the world needs no looking at.

    Args:
        held_out: What is validated on.
        config: Of the run.
        tasks: Those that will be validated.
        model: The base, for its tokenizers.

    Raises:
        DataSetError: No data set serves a task.
        FolderDataError: A task has no whole record, or a prompt cannot be read.
    """
    if held_out.place is not None and held_out.place.num_records is None:
        return
    seed, count, faults = config.data.held_out_seed, config.validation.samples, []
    with held_out_rule(model, config):
        for task in tasks:
            records = held_out.stage(task).records
            try:
                for one in held_out_examples(records, task, count, seed=seed, skipped=lambda problem: None):
                    _check_prompt(one.prompt, model)
            except CologenError as error:
                faults.append(f"  {task}: {error}")
    if faults:
        raise FolderDataError(
            "what is held out cannot be validated on as asked:\n"
            + "\n".join(faults)
            + "\nMend what data.held_out names, or leave validation out (--set validation.samples=0)."
        )


def check_data(
    records: RecordSource,
    num_records: int,
    stages: Sequence[str],
    model: FluxBase,
    max_broken: float = 0.0,
    *,
    skip_incomplete: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Make examples of every stage, and read their prompts as the base will.

    Args:
        records: A folder of pictures, or data sets.
        num_records: How many it holds.
        stages: Those that are to be trained.
        model: The base, for its tokenizers.
        max_broken: Largest fraction of records that training may skip; two standard errors above it pass.
        skip_incomplete: Whether records that lack what a view needs count as broken, as those of large sets
            do, whose objects may lie outside of the part that is cut out; else they are faults.
        say: Told of what is no fault, but worth knowing.

    Raises:
        FolderDataError: Names the first faults, and how many there are.
    """
    count = min(num_records, MAX_RECORDS)
    seeds = range(max(2, -(-EXAMPLES_PER_STAGE // count)))
    faults: dict[Fault, None] = {}
    broken, notes = 0, _Notes()
    for place in range(count):
        found = list(_faults(records, place * num_records // count, stages, seeds, model, notes))
        if skip_incomplete:
            found = [fault._replace(broken=fault.broken or fault.incomplete) for fault in found]
        broken += any(fault.broken for fault in found)
        faults.update(dict.fromkeys(found))
    for note in notes.lines(count):
        say(note)
    expected = max_broken * count
    if broken <= expected + 2 * math.sqrt(expected):
        faults = {fault: None for fault in faults if not fault.broken}
    if faults:
        shown = _mixed(list(faults), stages)
        lines = [f"  {fault.stage}, {fault.record}: {fault.message}" for fault in shown]
        more = f"\n  and {len(faults) - len(lines)} more" if len(faults) > len(lines) else ""
        raise FolderDataError(
            f"the data cannot be trained on as asked; {count} of {num_records} records were looked at:\n"
            + "\n".join(lines)
            + f"{more}\n{_advice(faults, stages)}"
        )


def _advice(faults: Iterable[Fault], stages: Sequence[str]) -> str:
    if all(fault.broken and not fault.incomplete for fault in faults):
        return "Mend these pictures or take them out, or let training skip more of them (data.max_broken)."
    wrong = {fault.stage for fault in faults}
    able = [] if ANY_STAGE in wrong else [stage for stage in stages if stage not in wrong]
    if not able:
        return "Add to the data what these stages need; it is enough for none of those asked for."
    return (
        "Add to the data what is missing, or leave these stages out of the run: "
        f"--set 'stages=[{','.join(able)}]' (--stage alone keeps them in it, to be trained first)."
    )


@dataclass
class _Notes:
    """What was found that is no fault, but worth knowing."""

    depth_maps: int = 0
    """Depth maps with pixels that hold no finite number."""
    depth_pixels: int = 0
    """How many such pixels they have."""
    unread: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Records whose prompts hold characters that the base cannot read, and the words that hold them."""

    def lines(self, count: int) -> Iterator[str]:
        """One line for each kind of note, about `count` records."""
        if self.depth_maps:
            yield (
                f"depth: {self.depth_maps} of {count} records looked at have {self.depth_pixels:,} pixels "
                "that are no finite number (NaN or infinite); they count as farthest"
            )
        if self.unread:
            record, words = next(iter(self.unread.items()))
            yield (
                f"prompts: {len(self.unread)} of {count} records looked at have characters that the base's "
                f"tokenizer cannot read, such as {', '.join(map(repr, words[:3]))} in {record}; training "
                "reads them as unknown, and generate refuses them"
            )


def _faults(
    records: RecordSource,
    index: int,
    stages: Sequence[str],
    seeds: Sequence[int],
    model: FluxBase,
    notes: _Notes,
) -> Iterator[Fault]:
    try:
        record = records.record(index)
    except CologenError as error:
        yield Fault(ANY_STAGE, f"record {index + 1}", str(error), isinstance(error, BrokenPictureError))
        return
    notes.depth_maps += record.depth_lost > 0
    notes.depth_pixels += record.depth_lost
    for stage in stages:
        for seed in seeds:
            try:
                prompt = VIEWS[stage](record, derive_seed(seed, "check")).prompt
                _check_prompt(prompt, model)
                unread = model.unknown_words(prompt)
            except CologenError as error:
                broken, incomplete = (
                    isinstance(error, kind) for kind in (BrokenPictureError, MissingMetadataError)
                )
                yield Fault(stage, record.id, str(error), broken, incomplete)
                continue
            if unread:
                notes.unread.setdefault(record.id, unread)


def _check_prompt(prompt: str, model: FluxBase) -> None:
    """Refuse a prompt that is too long, or that a closed vocabulary does not hold.

    Raises:
        PromptError: Says by how much, or names the words.
    """
    if model.long_prompts == "refuse":
        model.check_length(prompt)
    unknown = dict.fromkeys(model.unknown_words(prompt)) if model.closed_vocabulary is not None else {}
    if unknown:
        raise PromptError(f"the base cannot read {', '.join(map(repr, unknown))} in {prompt!r}")


def _mixed(faults: Sequence[Fault], stages: Sequence[str]) -> list[Fault]:
    """A few faults: of each stage in turn, shown in the order of stages."""
    queues = [[fault for fault in faults if fault.stage == stage] for stage in (ANY_STAGE, *stages)]
    turns = [queue[turn] for turn in range(SHOWN_FAULTS) for queue in queues if turn < len(queue)]
    chosen = set(turns[:SHOWN_FAULTS])
    return [fault for queue in queues for fault in queue if fault in chosen]

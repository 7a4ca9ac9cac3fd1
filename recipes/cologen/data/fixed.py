"""Every example of a record whose parts a cache can keep: one for each choice that a seed would make."""

from __future__ import annotations

from recipes.cologen.data.control import available_kinds, control_example
from recipes.cologen.data.customization import paired_example
from recipes.cologen.data.record import Example, Record
from recipes.cologen.data.views import VIEWS


def fixed_examples(record: Record, task: str) -> list[Example]:
    """Examples that between them hold all fixed parts (`Example.fixed`) that any seed may ask for.

    Raises:
        MissingMetadataError: The record lacks what the task needs.
    """
    if task == "control":
        return [control_example(record, kind) for kind in available_kinds(record)]
    pairs = [pair for pair in record.pairs if pair.task == task]
    if pairs:
        return [paired_example(record, pair) for pair in pairs]
    # The seed decides where a hole or a mark is, which is not fixed, and nothing that is.
    return [VIEWS[task](record, 0)]

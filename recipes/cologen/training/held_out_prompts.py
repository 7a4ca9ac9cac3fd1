"""Prompts of held-out pictures: read by the rule of where they come from, and looked at before training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from recipes.cologen.config import RunConfig
from recipes.cologen.errors import FolderDataError, PromptError
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.training.sources import DataSource
from recipes.cologen.training.validation import held_out_examples


@contextmanager
def held_out_rule(model: FluxBase, config: RunConfig) -> Iterator[None]:
    """Let the base treat long prompts as it should those of held-out pictures."""
    before = model.long_prompts
    model.long_prompts = config.held_out_long_prompts
    try:
        yield
    finally:
        model.long_prompts = before


def check_held_out(
    config: RunConfig, held_out: DataSource | None, tasks: Iterable[str], model: FluxBase
) -> None:
    """Make the examples that validation will, and see whether the base reads their prompts.

    Otherwise one that it refuses would end the training that it is to validate. The world's are known.

    Raises:
        FolderDataError: It refuses one.
        CologenError: An example cannot be made.
    """
    if held_out is None or (held_out.place is not None and held_out.place.num_records is None):
        return
    samples, seed = config.validation.samples, config.data.held_out_seed
    with held_out_rule(model, config):
        for task in tasks:
            for example in held_out_examples(held_out.stage(task).records, task, samples, seed=seed):
                _check(example.prompt, f"held out for {task}, {example.id}", model)


def _check(prompt: str, name: str, model: FluxBase) -> None:
    if model.long_prompts == "truncate":
        return
    try:
        model.check_length(prompt)
    except PromptError as error:
        raise FolderDataError(f"{name}: {error}") from error

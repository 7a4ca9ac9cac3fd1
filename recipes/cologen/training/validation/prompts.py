"""Long prompts of held-out pictures go by the rule of where they come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from recipes.cologen.config.run import RunConfig
from recipes.cologen.flux.base import FluxBase


@contextmanager
def held_out_rule(model: FluxBase, config: RunConfig) -> Iterator[None]:
    """Let the base treat long prompts as it should those of held-out pictures."""
    before = model.long_prompts
    model.long_prompts = config.held_out_long_prompts
    try:
        yield
    finally:
        model.long_prompts = before

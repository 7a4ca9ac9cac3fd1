"""Encodes held-out examples as training encodes its own: as many at once, through the same caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recipes.cologen.config.run import RunConfig
from recipes.cologen.data.record import Example, Image
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.flux.tokens import ImageTokens, TextTokens
from recipes.cologen.training.input.batches import kept_tasks, keys_of
from recipes.cologen.training.step import TrainedModel


class EncodedExamples(NamedTuple):
    """Prompts and sources as the transformer reads them."""

    text: TextTokens
    sources: tuple[ImageTokens, ...]


def encode_examples(trained: TrainedModel, examples: Sequence[Example]) -> EncodedExamples:
    """Encode prompts and sources of some examples of one task and size."""
    keys = keys_of(examples, kept_tasks(trained.config.data.cache))
    places = zip(*((example.source, *example.further) for example in examples), strict=True)
    first, *further = (_stacked(pictures) for pictures in places)
    return EncodedExamples(
        trained.encoder.prompts([example.prompt for example in examples], keys.prompts),
        (trained.encoder.images(first, keys.source), *map(trained.encoder.images, further)),
    )


def encode_targets(trained: TrainedModel, examples: Sequence[Example]) -> ImageTokens:
    """Encode the targets of some examples of one task and size."""
    keys = keys_of(examples, kept_tasks(trained.config.data.cache))
    return trained.encoder.images(_stacked([example.target for example in examples]), keys.target)


def _stacked(pictures: Sequence[Image]) -> Tensor:
    # [batch, height, width, 3] -> [batch, 3, height, width]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


@contextmanager
def held_out_rule(model: FluxBase, config: RunConfig) -> Iterator[None]:
    """Let the base treat long prompts as it should those of held-out pictures."""
    before = model.long_prompts
    model.long_prompts = config.held_out_long_prompts
    try:
        yield
    finally:
        model.long_prompts = before

"""The task loss on held-out examples at fixed times with fixed noise, and where the router sent them.

A training loss is taken at random times and noise, so it moves without the model having moved. Here every
example is seen at the middles of eight equal parts of [0, 1], shifted as training shifts its times, with
noise of its own seed, in evaluation mode (routers add no noise). Source of the times: Esser et al. (arXiv
2403.03206), section 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prw.routing import RoutingStatistics, Tally, statistics_of
from recipes.cologen.data.record import Example
from recipes.cologen.data.seeding import derive_seed
from recipes.cologen.flux.base import Sources
from recipes.cologen.flux.tokens import ImageTokens, TextTokens
from recipes.cologen.flux.two_step import SourceKV
from recipes.cologen.training.flow import interpolate, sample_noise
from recipes.cologen.training.step import TrainedModel, trained_times
from recipes.cologen.training.validation.encoding import encode_examples, encode_targets
from recipes.cologen.training.validation.scores import same_sized

TIMES = tuple((place + 0.5) / 8 for place in range(8))
"""Of flow matching, before the shift of training (`flow.shift`): 1 is pure noise."""


class HeldOutLoss(NamedTuple):
    """What was measured on the examples of one task."""

    by_time: tuple[float, ...]
    """Mean squared error of the velocity at each of `TIMES`, shifted."""
    routing: RoutingStatistics
    """Share of the newest expert, usage of each site, entropy of the router."""

    @property
    def loss(self) -> float:
        """Mean over all times."""
        return sum(self.by_time) / len(self.by_time)


@torch.no_grad()
def held_out_loss(
    trained: TrainedModel, examples: Sequence[Example], *, seed: int, batch_size: int
) -> HeldOutLoss:
    """Measure; nothing global is touched, and the transformer is left in the mode it was in.

    Args:
        trained: What is trained, with its settings.
        examples: Of one task; at least one.
        seed: Of the noise: that of example i depends on `seed` and i alone.
        batch_size: Most examples at once; all of a batch have one size.
    """
    sums, tally, done = torch.zeros(len(TIMES), dtype=torch.float64), None, 0
    with _evaluating(trained.model.transformer):
        while done < len(examples):
            batch = same_sized(examples[done:], batch_size)
            seeds = [derive_seed(seed, "loss", done + place) for place in range(len(batch))]
            errors, counted = _errors(trained, batch, seeds)
            sums += errors * len(batch)
            tally, done = counted.plus(tally), done + len(batch)
    return HeldOutLoss(tuple((sums / len(examples)).tolist()), statistics_of(_some(tally)))


def _errors(trained: TrainedModel, batch: Sequence[Example], seeds: Sequence[int]) -> tuple[Tensor, Tally]:
    """Mean error of a batch at each time, float64 [times], and its decisions."""
    model = trained.model
    (text, sources), clean = encode_examples(trained, batch), encode_targets(trained, batch)
    noise, errors, tally = sample_noise(seeds, clean.tokens.shape[1:]), [], None
    for time in trained_times(trained, torch.tensor(TIMES), clean.tokens.shape[1]):
        noisy, times, target = interpolate(clean.tokens, noise, time.expand(len(batch)))
        with trained.accelerator.autocast(), trained.weave.record() as routing:
            velocity = model.velocity(
                clean.with_tokens(noisy),
                times,
                text,
                _read(trained, sources, text),
                source_timestep=trained.config.flow.source_timestep,
                guidance=trained.guidance,
            )
        errors.append(F.mse_loss(velocity.float(), target).double().cpu())
        tally = routing.tally().plus(tally)
    return torch.stack(errors), _some(tally)


def _read(trained: TrainedModel, sources: Sequence[ImageTokens], text: TextTokens) -> Sources | SourceKV:
    """The sources as a forward takes them; at timestep 0 as keys and values, made in a pass of their own."""
    if trained.config.flow.source_timestep == "same":
        return sources
    return trained.model.source_kv(sources, text, trained.guidance)


def _some(tally: Tally | None) -> Tally:
    if tally is None:
        raise ValueError("a held-out loss needs at least one example")
    return tally


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, and afterwards each of its parts back as it was."""
    training = [part for part in module.modules() if part.training]
    try:
        module.eval()
        yield
    finally:
        for part in training:
            part.training = True

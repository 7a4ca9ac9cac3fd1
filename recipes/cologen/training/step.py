"""One optimiser step of a stage: encode, predict, weigh the losses, update; reads and writes no files."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

import prw
from prw import Weave
from prw.routing import Routing
from prw.routing.statistics import MEASURES
from recipes.cologen.caching.encoder import Encoder
from recipes.cologen.config.model import OptimizerSettings
from recipes.cologen.config.run import RunConfig
from recipes.cologen.data.annotators.annotate import Annotators
from recipes.cologen.errors import CologenError
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.flux.shift import shift_factor, shift_times
from recipes.cologen.flux.tokens import ImageTokens, TextTokens
from recipes.cologen.flux.transfer import to_device
from recipes.cologen.stages import StageSettings
from recipes.cologen.training.distributed.parallel import Parallel, clip
from recipes.cologen.training.flow import interpolate, sample_noise, sample_timesteps
from recipes.cologen.training.input.batches import Batch
from recipes.cologen.training.input.replay import own_tokens


@dataclass(frozen=True)
class TrainedModel:
    """What is trained and how: the base, the pool grown on it, the devices, the settings."""

    model: FluxBase
    weave: Weave
    accelerator: Accelerator
    config: RunConfig
    encoder: Encoder
    """The frozen VAE and text encoders, with the caches that the config asks for."""
    parallel: Parallel | None = None
    """How the base is spread over processes; None: there is one."""
    annotators: Annotators = field(default_factory=Annotators)
    """Annotate control maps that are not stored."""

    @property
    def guidance(self) -> float | None:
        """The guidance to train with, for a base that reads one."""
        return self.config.flow.guidance if self.model.reads_guidance else None


class EncodedBatch(NamedTuple):
    """A batch as the transformer reads it."""

    text: TextTokens
    sources: tuple[ImageTokens, ...]
    """Each [batch, source tokens, channels]; the first one first."""
    noisy: ImageTokens
    """[batch, tokens, channels]."""
    timestep: Tensor
    """[batch], 1 is pure noise."""
    velocity: Tensor
    """To predict, [batch, tokens, channels]."""


class NonFiniteError(CologenError, ArithmeticError):
    """A step's loss or gradient is not finite; raised on all ranks alike, and nothing was changed.

    Attributes:
        losses: What the step measured on each rank, as means over its examples.
        records: Ids of the examples that it came from, as far as that can be told.
    """

    def __init__(self, losses: Sequence[float], records: Sequence[str]) -> None:
        """Keep what is known."""
        super().__init__(f"the loss is {', '.join(map(str, losses))}, on {', '.join(records)}")
        self.losses, self.records = tuple(losses), tuple(records)


class StepLosses(NamedTuple):
    """What a step measured, as means over its examples."""

    task_loss: float
    veteran_loss: float
    """Already multiplied by alpha."""
    share: float
    """Of the stage's own examples; nan where all were replayed."""
    gate: float

    @property
    def loss(self) -> float:
        """What was minimised: task loss plus veteran loss (equation 10)."""
        return self.task_loss + self.veteran_loss

    @staticmethod
    def mean(several: Sequence[StepLosses]) -> StepLosses:
        """The mean of each number, over those that have it."""
        return StepLosses(*(_mean(values) for values in zip(*several, strict=True)))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@torch.no_grad()
def encode(trained: TrainedModel, batch: Batch) -> EncodedBatch:
    """Annotate sources that wait for a map, run the frozen encoders; noise and times as seeded."""
    encoder, flow = trained.encoder, trained.config.flow
    first = trained.annotators.sources(to_device(batch.source, trained.accelerator.device), batch.annotators)
    # [batch, 3, height, width] -> [batch, tokens, channels]
    clean = encoder.images(batch.target, batch.keys.target)
    times = sample_timesteps(batch.seeds, flow.timestep_mean, flow.timestep_std)
    noise = sample_noise(batch.seeds, clean.tokens.shape[1:])
    shifted = trained_times(trained, times, clean.tokens.shape[1])
    noisy, timestep, velocity = interpolate(clean.tokens, noise, shifted)
    text = encoder.prompts(batch.prompts, batch.keys.prompts)
    source = encoder.images(first, batch.keys.source)
    further = tuple(encoder.images(one) for one in batch.further)
    return EncodedBatch(text, (source, *further), clean.with_tokens(noisy), timestep, velocity)


def trained_times(trained: TrainedModel, times: Tensor, num_tokens: int) -> Tensor:
    """Times [any] shifted as training shifts those of pictures of so many tokens, in float32."""
    model, flow = trained.model, trained.config.flow
    mu = model.schedule_shift(num_tokens, flow.shift_steps)
    return shift_times(times, shift_factor(model.scheduler.config, flow.shift, mu))


def encode_all(trained: TrainedModel, micro: Sequence[Batch]) -> Iterator[EncodedBatch]:
    """Encode the micro-batches of a step in their order: each when it is asked for, or all at the first.

    All at once where encoders wait on the host, so that they come to the device once per step; what was
    encoded is given away one by one, and held by nobody else.
    """
    each = (encode(trained, batch) for batch in micro)
    if not trained.config.machine.encodes_ahead:
        yield from each
        return
    ready = deque(each)
    while ready:
        yield ready.popleft()


def batch_loss(
    trained: TrainedModel, stage: StageSettings, batch: Batch, encoded: EncodedBatch | None = None
) -> tuple[Tensor, Tensor]:
    """The loss of one batch, with its graph, and what it measured; nothing is read from the device.

    Source: CoLoGen (arXiv 2602.22150), equation 10; the task loss is flow matching's squared error, in
    float32.

    Args:
        trained: What is trained.
        stage: Its settings.
        batch: The examples.
        encoded: The same as `encode` gives them; None: they are encoded here.

    Returns:
        The loss, a scalar with its graph, and the fields of `StepLosses`: float32 [4] without a graph.
    """
    encoded, config = encoded or encode(trained, batch), trained.config
    velocity_of = trained.model.velocity if trained.parallel is None else trained.parallel.velocity
    with trained.accelerator.autocast(), trained.weave.record() as routing:
        velocity = velocity_of(
            encoded.noisy,
            encoded.timestep,
            encoded.text,
            encoded.sources,
            source_timestep=config.flow.source_timestep,
            guidance=trained.guidance,
        )
    task = F.mse_loss(velocity.float(), encoded.velocity)
    own = own_tokens(batch, sum(one.tokens.shape[1] for one in encoded.sources), trained.accelerator.device)
    veteran = prw.veteran_loss(routing, rho=stage.rho, alpha=stage.alpha, per=config.veteran.per, mask=own)
    return task + veteran, _measured(
        task, veteran, routing, own, bool(batch.replayed) and all(batch.replayed)
    )


@torch.no_grad()
def _measured(
    task: Tensor, veteran: Tensor, routing: Routing, own: Tensor | None, all_replayed: bool
) -> Tensor:
    """Losses, share and gate of a batch: float32 [4] on the device, without synchronising."""
    share = routing.newest_share("straight-through", mask=own)
    tally = routing.tally()
    chosen, gates = tally.sums.tensor_split([len(tally.experts)], dim=1)
    gate = gates[:, MEASURES.index("gate")].sum() / chosen.sum().clamp(min=1.0)
    if all_replayed:
        share = torch.full_like(share, math.nan)
    return torch.stack([task.detach(), veteran.detach(), share, gate])


def learning_rate(step: int, stage: StageSettings, settings: OptimizerSettings) -> float:
    """Learning rate of a step, counted from 1: it rises, stays, and falls linearly to end near 0."""
    rise = min(1.0, step / settings.warmup_steps) if settings.warmup_steps else 1.0
    falling_steps = settings.decay_fraction * stage.steps
    fall = min(1.0, (stage.steps - step + 1) / falling_steps) if falling_steps >= 1 else 1.0
    return stage.lr * rise * fall


def train_step(
    trained: TrainedModel,
    stage: StageSettings,
    step: int,
    optimizer: torch.optim.Optimizer,
    micro: Sequence[Batch],
) -> StepLosses:
    """Make one update from this rank's micro-batches, and say what it measured here.

    Raises:
        NonFiniteError: A loss or gradient of any rank is not finite; neither weights nor optimiser moved.
    """
    optimizer.zero_grad(set_to_none=True)
    measured, ready = [], encode_all(trained, micro)
    for place, batch in enumerate(micro):
        with _gathering(trained, last=place == len(micro) - 1):
            loss, losses = batch_loss(trained, stage, batch, next(ready))
            _backward(trained, loss / len(micro))
        measured.append(losses)
    norm = clip(optimizer, trained.config.optimizer.clip_norm)
    finite, losses_read = _read(trained.accelerator, norm, measured)
    if not finite:
        raise _non_finite(trained.accelerator, losses_read, micro)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, stage, trained.config.optimizer)
    optimizer.step()
    return StepLosses.mean(losses_read)


def _backward(trained: TrainedModel, loss: Tensor) -> None:
    if trained.parallel is None:
        loss.backward()
    else:
        trained.parallel.backward(loss)


def _gathering(trained: TrainedModel, last: bool) -> AbstractContextManager[Any]:
    """Where gradients of a micro-batch are averaged over ranks: only with those of the step's last one."""
    return nullcontext() if trained.parallel is None or last else trained.parallel.gather_later()


def _read(
    accelerator: Accelerator, norm: Tensor, measured: Sequence[Tensor]
) -> tuple[bool, list[StepLosses]]:
    """Whether losses and gradients of all ranks are finite, and this rank's numbers, in one transfer."""
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    rows = torch.stack(list(measured))  # [micro-batches, 4]
    finite = rows[:, :2].isfinite().all() & norm.to(rows.device).isfinite()
    faults = (~finite).float()[None]
    if accelerator.num_processes > 1:
        faults = accelerator.reduce(faults, "sum")
    *numbers, fault_count = torch.cat([rows.flatten(), faults]).tolist()
    width = rows.shape[1]
    read = [StepLosses(*numbers[start : start + width]) for start in range(0, len(numbers), width)]
    return fault_count == 0, read


def _non_finite(
    accelerator: Accelerator, measured: Sequence[StepLosses], micro: Sequence[Batch]
) -> NonFiniteError:
    """What is wrong with a step that is not finite on some rank; all ranks must ask.

    It names the examples of the batches whose loss is not finite; where all losses are, and only the gradient
    is not, every example of the step.
    """
    batches = [(not math.isfinite(one.loss), batch.ids) for one, batch in zip(measured, micro, strict=True)]
    here = [(sum(losses.loss for losses in measured) / len(measured), batches)]
    ranks = gather_object(here) if accelerator.num_processes > 1 else here
    all_batches = [batch for _, of_rank in ranks for batch in of_rank]
    named = [ids for is_bad, ids in all_batches if is_bad] or [ids for _, ids in all_batches]
    return NonFiniteError([loss for loss, _ in ranks], [record for ids in named for record in ids])

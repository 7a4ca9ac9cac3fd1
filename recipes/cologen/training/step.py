"""One optimiser step of a stage: encode, predict, weigh the losses, update; reads and writes no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

import prw
from prw import Weave
from recipes.cologen.config import RunConfig
from recipes.cologen.config_model import OptimizerSettings
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.flux.tokens import ImageTokens, TextTokens
from recipes.cologen.stages import StageSettings
from recipes.cologen.training.batches import Batch, to_unit_range
from recipes.cologen.training.flow import FlowSample, draw_noise, draw_timesteps, flow_sample


@dataclass(frozen=True)
class Trainee:
    """What is trained and how: the base, the pool grown on it, the devices, the settings."""

    model: FluxBase
    weave: Weave
    accelerator: Accelerator
    config: RunConfig

    @property
    def guidance(self) -> float | None:
        """The guidance to train with, for a base that reads one."""
        return self.config.flow.guidance if self.model.reads_guidance else None


class Encoded(NamedTuple):
    """A batch as the transformer reads it."""

    text: TextTokens
    source: ImageTokens
    noise: ImageTokens
    flow: FlowSample


class StepLosses(NamedTuple):
    """What a step measured, as means over its examples."""

    task_loss: float
    veteran_loss: float
    """Already multiplied by alpha."""
    share: float
    gate: float

    @property
    def loss(self) -> float:
        """What was minimised: task loss plus veteran loss (equation 10)."""
        return self.task_loss + self.veteran_loss

    @staticmethod
    def mean(several: Sequence[StepLosses]) -> StepLosses:
        """The mean of each number."""
        return StepLosses(*(sum(values) / len(values) for values in zip(*several, strict=True)))


@torch.no_grad()
def encode(trainee: Trainee, batch: Batch) -> Encoded:
    """Run the frozen text encoders and VAE, and draw the noise and times that belong to the batch's seeds."""
    model, device, flow = trainee.model, trainee.accelerator.device, trainee.config.flow
    clean = model.encode_images(to_unit_range(batch.target, device))
    sample = flow_sample(
        clean.tokens,
        draw_noise(batch.seeds, clean.tokens.shape[1:]),
        draw_timesteps(batch.seeds, flow.timestep_mean, flow.timestep_std),
    )
    return Encoded(
        text=model.encode_prompts(list(batch.prompts)),
        source=model.encode_images(to_unit_range(batch.source, device)),
        noise=clean.with_tokens(sample.noisy),
        flow=sample,
    )


def batch_loss(trainee: Trainee, stage: StageSettings, batch: Batch) -> tuple[Tensor, StepLosses]:
    """The loss of one batch, with its graph, and what it is made of.

    Source: CoLoGen (arXiv 2602.22150), equation 10; the task loss is flow matching's squared error, in
    float32.
    """
    encoded, config = encode(trainee, batch), trainee.config
    with trainee.accelerator.autocast(), trainee.weave.record() as routing:
        velocity = trainee.model.velocity(
            encoded.noise,
            encoded.flow.timestep,
            encoded.text,
            encoded.source,
            source_timestep=config.flow.source_timestep,
            guidance=trainee.guidance,
        )
    task = F.mse_loss(velocity.float(), encoded.flow.velocity)
    veteran = prw.veteran_loss(routing, rho=stage.rho, alpha=stage.alpha, per=config.veteran.per)
    measured = StepLosses(task.item(), veteran.item(), routing.share(), routing.gate())
    return task + veteran, measured


def make_optimizer(parameters: list[nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW on these parameters and no others; the learning rate is set before each step."""
    return torch.optim.AdamW(
        parameters, lr=0.0, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
    )


def learning_rate(step: int, stage: StageSettings, settings: OptimizerSettings) -> float:
    """Learning rate of a step, counted from 1: it rises, stays, and falls linearly to end near 0."""
    rise = min(1.0, step / settings.warmup_steps) if settings.warmup_steps else 1.0
    falling_steps = settings.decay_fraction * stage.steps
    fall = min(1.0, (stage.steps - step + 1) / falling_steps) if falling_steps >= 1 else 1.0
    return stage.lr * rise * fall


def train_step(
    trainee: Trainee,
    stage: StageSettings,
    step: int,
    optimizer: torch.optim.Optimizer,
    micro: Sequence[Batch],
) -> StepLosses:
    """Make one update from this rank's micro-batches, and say what it measured here."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    measured = []
    for batch in micro:
        loss, losses = batch_loss(trainee, stage, batch)
        (loss / len(micro)).backward()
        measured.append(losses)
    average_gradients(parameters, trainee.accelerator)
    nn.utils.clip_grad_norm_(parameters, trainee.config.optimizer.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, stage, trainee.config.optimizer)
    optimizer.step()
    return StepLosses.mean(measured)


def average_gradients(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Average gradients over all ranks, in place; an expert that nobody on a rank picked counts as 0 there.

    One reduction of a flat tensor instead of a DistributedDataParallel wrapper: only the pool is trained,
    and a wrapper waits for ever for an expert that no example of a rank went to.
    """
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))

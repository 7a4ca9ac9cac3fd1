"""What a training step holds besides weights: traced through the real classes on tensors without data.

The trace runs the recipe's own encoders, two-step attention, experts, loss and backward pass, so whatever
autograd keeps is counted as it is kept. Deep bases are traced with a few blocks: every further block of a
kind adds the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import prw
from prw.config import PoolSettings
from recipes.cologen.costs.live_bytes import LiveBytes, saved_bytes
from recipes.cologen.costs.shapes import BaseShape
from recipes.cologen.flux.flux2_model import Flux2Model
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.flux.tokens import ImageTokens, PromptIds, TextTokens

FEW = 2
"""Blocks of a kind that are traced; the difference that a third makes is that of each further one."""


class Load(NamedTuple):
    """One micro-batch on one device."""

    batch: int
    height: int
    width: int
    experts: int
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False
    source_timestep: Literal["same", "zero"] = "same"
    sources: tuple[tuple[int, int], ...] = ()
    """Height and width of each example's source pictures; empty: one of the target's size."""

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of an example's pictures, the target first."""
        target = (self.height, self.width)
        return (target, *(self.sources or (target,)))

    @property
    def pixels(self) -> str:
        """What a device is given at once, in words."""
        target, *sources = (f"{height} x {width}" for height, width in self.sizes)
        if set(sources) != {target}:
            return f"{self.batch} x {target} pixels, each from {' and '.join(sources)}"
        number = "a source" if len(sources) == 1 else f"{len(sources)} sources"
        return f"{self.batch} x {target} pixels, each with {number} of that size"


class StepBytes(NamedTuple):
    """Bytes of a step, without weights, gradients and optimiser states."""

    encoding: int
    """The most that is alive at once while text encoders and VAE run; no gradients are wanted there."""
    saved: int
    """What autograd keeps at the end of the forward pass."""
    training: int
    """The most that is alive at once in forward and backward pass, what is saved included."""


class Encoded(NamedTuple):
    """A micro-batch as the transformer reads it, by the shapes of its tensors; and what encoding it took."""

    peak: int
    grids: tuple[tuple[int, int], ...]
    """Rows and columns of tokens of the target and of each source."""
    channels: int
    embeds: tuple[int, ...]
    pooled: tuple[int, ...]


def step_bytes(shape: BaseShape, pool: PoolSettings, load: Load) -> StepBytes:
    """Bytes of a training step of a base with a pool of experts.

    Without numbers, experts are computed by plain operations, which keep a little more than the kernels do.
    """
    return _step_bytes(shape, pool.model_dump_json(), load)


@lru_cache(maxsize=64)
def _step_bytes(shape: BaseShape, settings: str, load: Load) -> StepBytes:
    encoded, pool = encode(shape, load), PoolSettings.model_validate_json(settings)
    saved, held = over_depth(shape, lambda blocks: _trace(shape, pool, load, encoded, blocks))
    return StepBytes(encoded.peak, saved, held)


def over_depth(shape: BaseShape, trace: Callable[[tuple[int, int]], Sequence[int]]) -> list[int]:
    """What a trace of some double and single blocks would give for all blocks of a base."""
    few = [min(number, FEW) for number in shape.blocks]
    start = trace((few[0], few[1]))
    total = list(start)
    for kind, number in enumerate(shape.blocks):
        further = number - few[kind]
        if further:
            more = trace((few[0] + (kind == 0), few[1] + (kind == 1)))
            total = [a + further * (b - c) for a, b, c in zip(total, more, start, strict=True)]
    return total


@torch.no_grad()
def encode(shape: BaseShape, load: Load) -> Encoded:
    """Encode prompts, source and target of a micro-batch, in the order in which training encodes them."""
    with FakeTensorMode():
        model = shape.build(load.dtype, (1, 1))
        weights = [weight for part in model.modules() for weight in (*part.parameters(), *part.buffers())]
        with LiveBytes(weights) as live:
            target, *sources = (torch.zeros(load.batch, 3, *size) for size in load.sizes)
            clean = model.encode_images(target)
            text = encode_text(model, load.batch)
            images = [clean, *(model.encode_images(source) for source in sources)]
        grids = tuple((one.rows, one.columns) for one in images)
        shapes = (tuple(text.embeds.shape), tuple(text.pooled.shape))
        return Encoded(live.peak, grids, clean.tokens.shape[-1], *shapes)


def encode_text(model: FluxModel | Flux2Model, batch: int) -> TextTokens:
    """Run the text encoders on prompts of the length that is read."""
    if isinstance(model, Flux2Model):
        every_prompt: Any = _LongestPrompts()
        model.tokenizer, model.long_prompts = every_prompt, "truncate"
        return model.encode_prompts([""] * batch)
    longest = torch.zeros(batch, model.max_text_tokens, dtype=torch.long)
    length = model.text_encoder.config.max_position_embeddings
    return model.encode_ids(PromptIds(clip=torch.zeros(batch, length, dtype=torch.long), t5=longest))


class _LongestPrompts:
    """A tokenizer to which every prompt is as long as is read."""

    def apply_chat_template(self, message: object, **settings: object) -> str:
        return ""

    def __call__(self, text: str, *, max_length: int, **settings: object) -> dict[str, Tensor]:
        ids = torch.zeros(1, max_length, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def woven(
    shape: BaseShape, pool: PoolSettings, load: Load, blocks: tuple[int, int]
) -> tuple[FluxModel | Flux2Model, prw.Weave]:
    """A base of some blocks with its pool, in training mode; called under `FakeTensorMode`."""
    model = shape.build(load.dtype, blocks, encoders=False)
    # A kernel is never chosen by values, and a pool with a generator of its own would read them.
    settings = {**pool.model_dump(), "kernel": "dense", "noise_seed": None}
    weave = prw.inject(model.transformer, target="kv", **settings)
    for number in range(load.experts):
        weave.add_expert(f"expert_{number}")
    model.transformer.train()
    if load.checkpointing:
        model.transformer.enable_gradient_checkpointing()
    for parameter in weave.trainable_parameters():
        # There from the step's first micro-batch on, and counted by themselves.
        parameter.grad = torch.zeros_like(parameter)
    return model, weave


def _trace(
    shape: BaseShape, pool: PoolSettings, load: Load, encoded: Encoded, blocks: tuple[int, int]
) -> tuple[int, int]:
    """What a step saves and holds with these numbers of double and single blocks."""
    with FakeTensorMode():
        model, weave = woven(shape, pool, load, blocks)
        weights = [*model.transformer.parameters(), *model.transformer.buffers()]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        with LiveBytes([*weights, *gradients]) as live:
            with saved_bytes(weights) as saved:
                loss = step_loss(model, weave, load, encoded)
            loss.backward()
        return sum(saved), live.peak


def step_loss(model: FluxModel | Flux2Model, weave: prw.Weave, load: Load, encoded: Encoded) -> Tensor:
    """The loss of the training step, `training/step.py`, whose numbers nobody reads here."""
    dtype, mixed = load.dtype, load.dtype == torch.bfloat16
    text = TextTokens(torch.empty(encoded.embeds, dtype=dtype), torch.empty(encoded.pooled, dtype=dtype))
    target, *sources = (
        ImageTokens(torch.empty(load.batch, rows * columns, encoded.channels, dtype=dtype), rows, columns)
        for rows, columns in encoded.grids
    )
    wanted, noisy = (torch.empty(target.tokens.shape) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), weave.record() as routing:
        velocity = model.velocity(
            target.with_tokens(noisy),
            torch.empty(load.batch),
            text,
            tuple(sources),
            source_timestep=load.source_timestep,
            guidance=1.0 if model.reads_guidance else None,
        )
    return F.mse_loss(velocity.float(), wanted) + prw.veteran_loss(routing, rho=0.8, alpha=0.5)

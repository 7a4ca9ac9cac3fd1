"""What a training step holds besides weights: traced through the real classes on tensors without data.

The trace runs the recipe's own encoders, two-step attention, experts, loss, backward pass and generation,
with CUDA's numerics, so whatever autograd keeps is counted as it is kept there. Deep bases are traced with a
few blocks: every further block of a kind adds the same.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import prw
from prw.config import PoolSettings
from recipes.cologen.costs.cuda_numerics import CudaNumerics, backward, quantise
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
    quantisation: str | None = None
    """Format of the transformer's weights, as `base.quantisation`."""
    validated: int = 0
    """Pictures that validation generates at once; 0: there is none."""
    share: int = 0
    """Examples of a step on this device; 0: one micro-batch."""
    ahead: bool = False
    """Whether all of them are encoded before the first forward pass."""

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
    waiting: int = 0
    """What micro-batches that are encoded ahead hold."""
    validation: int = 0
    """The most that is alive at once while pictures are encoded, generated and decoded without gradients."""


class Encoded(NamedTuple):
    """A micro-batch as the transformer reads it, by the shapes of its tensors; and what encoding it took."""

    peak: int
    grids: tuple[tuple[int, int], ...]
    """Rows and columns of tokens of the target and of each source."""
    channels: int
    embeds: tuple[int, ...]
    pooled: tuple[int, ...]

    def bytes(self, dtype: torch.dtype) -> int:
        """What it holds until it is trained on: text and sources, and in float32 noisy and wanted tokens."""
        (rows, columns), *sources = self.grids
        of_sources = sum(high * wide for high, wide in sources) * self.channels * self.embeds[0]
        of_target = rows * columns * self.channels * self.embeds[0]
        text = math.prod(self.embeds) + math.prod(self.pooled)
        return (text + of_sources) * dtype.itemsize + 2 * of_target * torch.float32.itemsize


class StepNumerics(CudaNumerics):
    """CUDA's numerics of a step in which only experts train; their products save what the kernels save.

    Without numbers, experts are computed by plain operations, whose weights are the only ones that train. A
    kernel saves its input as it is, even a view of a larger one, and no copy of input or weights; and the
    keys' and values' projections of a site read their input's rows once for both.
    """

    def __init__(self) -> None:
        """Start with no rows read."""
        super().__init__()
        self._read: tuple[Callable[[], Tensor | None], ...] = (_nothing, _nothing)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function as CUDA would, and a product with experts as a kernel would."""
        if getattr(function, "__name__", "") == "linear" and args[1].requires_grad:
            return _ExpertProduct.apply(*args[:2])  # type: ignore[no-untyped-call]
        if getattr(function, "__name__", "") != "reshape":
            return super().__torch_function__(function, types, args, kwargs)
        whole, rows = self._read[0](), self._read[1]()
        if args[0] is whole and rows is not None and rows.shape[-1:] == whole.shape[-1:]:
            return rows
        fresh: Tensor = function(*args, **(kwargs or {}))
        if fresh.dim() == 2:
            self._read = weakref.ref(args[0]), weakref.ref(fresh)
        return fresh


def _nothing() -> None:
    """What no rows are read of."""


class _ExpertProduct(torch.autograd.Function):
    """A product without numbers, and gradients of the right sizes."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.weight_like = weight.shape, weight.dtype
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
        with torch.autocast("cpu", enabled=False):
            return F.linear(hidden.to(dtype), weight.to(dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (hidden,) = ctx.saved_tensors
        shape, dtype = ctx.weight_like
        return torch.empty_like(hidden), torch.empty(shape, dtype=dtype)


def step_bytes(shape: BaseShape, pool: PoolSettings, load: Load) -> StepBytes:
    """Bytes of a training step of a base with a pool of experts.

    In rank space, plain operations keep a little more of experts than the kernels do.
    """
    return _step_bytes(shape, pool.model_dump_json(), load)


@lru_cache(maxsize=64)
def _step_bytes(shape: BaseShape, settings: str, load: Load) -> StepBytes:
    encoded, pool = encode(shape, load), PoolSettings.model_validate_json(settings)
    saved, held = over_depth(shape, lambda blocks: _trace(shape, pool, load, encoded, blocks))
    further = max(0, load.share - load.batch) if load.ahead else 0
    waiting = further * encoded.bytes(load.dtype) // load.batch
    return StepBytes(encoded.peak, saved, held, waiting, _validation_bytes(shape, pool, load))


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
    quantise(model.transformer, load.quantisation)
    # A kernel is never chosen by values, and a pool with a generator of its own would read them.
    settings = {**pool.model_dump(), "kernel": "dense"}
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
        with StepNumerics(), LiveBytes([*weights, *gradients]) as live:
            with saved_bytes(weights) as saved:
                loss = step_loss(model, weave, load, encoded)
            backward(loss)
        return sum(saved), live.peak


def step_loss(model: FluxModel | Flux2Model, weave: prw.Weave, load: Load, encoded: Encoded) -> Tensor:
    """The loss of the training step, `training/step.py`, whose numbers nobody reads here."""
    mixed = load.dtype == torch.bfloat16
    text, target, sources = _inputs(load, encoded)
    wanted, noisy = (torch.empty(target.tokens.shape) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), weave.record() as routing:
        velocity = model.velocity(
            target.with_tokens(noisy),
            torch.empty(load.batch),
            text,
            sources,
            source_timestep=load.source_timestep,
            guidance=1.0 if model.reads_guidance else None,
        )
    return F.mse_loss(velocity.float(), wanted) + prw.veteran_loss(routing, rho=0.8, alpha=0.5)


def _inputs(load: Load, encoded: Encoded) -> tuple[TextTokens, ImageTokens, tuple[ImageTokens, ...]]:
    """Text, target and sources of a micro-batch."""
    dtype = load.dtype
    text = TextTokens(torch.empty(encoded.embeds, dtype=dtype), torch.empty(encoded.pooled, dtype=dtype))
    target, *sources = (
        ImageTokens(torch.empty(load.batch, rows * columns, encoded.channels, dtype=dtype), rows, columns)
        for rows, columns in encoded.grids
    )
    return text, target, tuple(sources)


def _validation_bytes(shape: BaseShape, pool: PoolSettings, load: Load) -> int:
    """What generating held-out pictures takes: no gradients, no autocast, and pictures are decoded."""
    if not load.validated:
        return 0
    load = load._replace(batch=load.validated, checkpointing=False)
    encoded = encode(shape, load)
    (generated,) = over_depth(shape, lambda blocks: (_trace_generation(shape, pool, load, encoded, blocks),))
    return max(encoded.peak, generated, _decode(shape, load, encoded))


@torch.no_grad()
def _trace_generation(
    shape: BaseShape, pool: PoolSettings, load: Load, encoded: Encoded, blocks: tuple[int, int]
) -> int:
    """What a step of sampling holds with these numbers of double and single blocks."""
    with FakeTensorMode():
        model, weave = woven(shape, pool, load, blocks)
        model.transformer.eval()
        weights = [*model.transformer.parameters(), *model.transformer.buffers()]
        with CudaNumerics(), LiveBytes(weights) as live, weave.record():
            text, target, sources = _inputs(load, encoded)
            model.velocity(
                target,
                torch.empty(load.batch),
                text,
                sources,
                source_timestep=load.source_timestep,
                guidance=1.0 if model.reads_guidance else None,
            )
        return int(live.peak)


@torch.no_grad()
def _decode(shape: BaseShape, load: Load, encoded: Encoded) -> int:
    """What decoding generated pictures holds."""
    with FakeTensorMode():
        model = shape.build(load.dtype, (1, 1))
        weights = [weight for part in model.modules() for weight in (*part.parameters(), *part.buffers())]
        with CudaNumerics(), LiveBytes(weights) as live:
            _, target, _ = _inputs(load, encoded)
            model.decode(target)
        return int(live.peak)

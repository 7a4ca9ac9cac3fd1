"""Memory of a training step by part, and what would make it fit; computed, not yet measured on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from recipes.cologen.config.run import RunConfig
from recipes.cologen.costs.activations import Load, StepBytes, step_bytes
from recipes.cologen.costs.parameters import Counts
from recipes.cologen.costs.shapes import BaseShape

FLOAT32 = 4
QUANTISED = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0, "torchao_int8": 1.0, "torchao_fp8": 1.0}
"""Bytes of a weight of a linear layer; nf4 has a scale in 8 bits for every 64, and one in 32 for every 256 of
those (bitsandbytes' double quantisation). Scales of a row are too few to count."""
STATES = {"adamw": 8.0, "adamw_fused": 8.0, "adamw_8bit": 2 + 2 * 4 / 256}
"""Bytes of AdamW's two states of a parameter; bitsandbytes has a scale for every 256."""
RESERVE_BYTES = 10**9
"""For the CUDA context and the workspaces of cuBLAS and cuDNN; an assumption."""
FRAGMENTATION = 0.05
"""Of what comes and goes in a step, for gaps that the allocator cannot use; an assumption."""
TIGHT = 0.1
"""Part of a GPU's memory: what leaves less is called tight, since nothing was measured on a GPU yet."""
STACKING = ("auto", "dense", "grouped")
"""Kernels that keep all experts of a projection one above the other, in the dtype that they compute in."""


class Part(NamedTuple):
    """One thing that memory goes to."""

    name: str
    bytes: int
    note: str = ""


class Memory(NamedTuple):
    """What one device holds at the worst moment of a step."""

    parts: tuple[Part, ...]
    load: Load

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(part.bytes for part in self.parts)

    @property
    def floor(self) -> int:
        """What is held whatever the batch: weights, gradients and optimiser states."""
        return sum(part.bytes for part in self.parts if part.name not in COMES_AND_GOES)


ACTIVATIONS, RESERVE = "activations", "reserve"
COMES_AND_GOES = (ACTIVATIONS, RESERVE)


class Change(NamedTuple):
    """Settings that would need less memory."""

    settings: tuple[str, ...]
    memory: Memory


def load_of(
    config: RunConfig,
    micro_batch: int,
    size: tuple[int, int],
    experts: int,
    sources: tuple[tuple[int, int], ...] = (),
    *,
    processes: int = 1,
) -> Load:
    """What a device is given at once.

    Args:
        config: Of the run.
        micro_batch: Examples at once.
        size: Height and width of the target.
        experts: Of the pool.
        sources: Heights and widths of the sources; empty: one of the target's size.
        processes: How many share a batch.
    """
    largest = max(stage.batch_size for stage in config.stages.values())
    validates = config.validation.samples > 0 and config.data.held_out_place is not None
    return Load(
        batch=micro_batch,
        height=size[0],
        width=size[1],
        experts=experts,
        dtype=getattr(torch, config.base.dtype),
        checkpointing=config.machine.gradient_checkpointing,
        source_timestep=config.flow.source_timestep,
        sources=sources,
        quantisation=config.base.quantisation,
        validated=min(config.machine.micro_batch or largest, config.validation.samples) * validates,
        share=max(micro_batch, largest // processes),
        ahead=config.machine.encodes_ahead,
    )


def estimate_memory(config: RunConfig, shape: BaseShape, counts: Counts, load: Load) -> Memory:
    """What one device needs for a step, by part."""
    return memory_of(config, counts, load, step_bytes(shape, config.pool, load))


def memory_of(config: RunConfig, counts: Counts, load: Load, step: StepBytes) -> Memory:
    """The same, of a step that has been traced."""
    return Memory((*_lasting(config, counts, load.experts), *_passing(config, counts, step, load)), load)


def weight_bytes(config: RunConfig, counts: Counts) -> int:
    """Bytes of the transformer's frozen weights."""
    size = element_size(config.base.dtype)
    whole = counts.base["transformer"] * size
    if config.base.quantisation is None:
        return whole
    return whole - counts.linear * size + round(counts.linear * QUANTISED[config.base.quantisation])


def element_size(dtype: str) -> int:
    """Bytes of one number."""
    return torch.empty((), dtype=getattr(torch, dtype)).element_size()


def trained_parameters(config: RunConfig, counts: Counts, experts: int) -> int:
    """How many are trained at once: the newest expert with its gates, and veterans' gates where asked for."""
    veterans = (experts - 1) * counts.router_per_expert if config.pool.train_veteran_gates else 0
    return counts.per_expert + counts.router_per_expert + veterans


def _lasting(config: RunConfig, counts: Counts, experts: int) -> Iterator[Part]:
    """What is there all the time."""
    dtype, size = config.base.dtype, element_size(config.base.dtype)
    one, trained = counts.per_expert + counts.router_per_expert, trained_parameters(config, counts, experts)
    stays = config.machine.encoders == "resident"
    where = f"frozen, {dtype}, resident" if stays else "on the host while nothing is encoded"
    encoders = sum(count for name, count in counts.base.items() if name.startswith("text_encoder"))
    states = STATES[config.optimizer.name]
    yield Part("transformer", weight_bytes(config, counts), f"frozen, {config.base.quantisation or dtype}")
    yield Part("text encoders", encoders * size * stays, where)
    yield Part("VAE", counts.base["vae"] * size * stays, where)
    yield Part("experts and routers", experts * one * FLOAT32, f"{experts} experts, float32")
    if experts > 1 and config.pool.kernel in STACKING:
        copies = experts * counts.per_expert * size
        yield Part("stacked experts", copies, f"the copies that kernels keep, {dtype}")
    yield Part("gradients", trained * FLOAT32, "of the newest expert, float32")
    yield Part("optimiser", round(trained * states), f"{config.optimizer.name}, two states")
    if config.optimizer.ema_decay is not None:
        yield Part("running average", trained * FLOAT32, "of the newest expert, float32")


def _passing(config: RunConfig, counts: Counts, step: StepBytes, load: Load) -> Iterator[Part]:
    """What comes and goes: the worst of encoding, training and validation."""
    how = "with" if load.checkpointing else "without"
    encoders, vae = _visiting_bytes(config, counts)
    moments = {
        f"{load.pixels}, {how} gradient checkpointing": step.training + step.waiting,
        f"{load.pixels}, while they are encoded": step.encoding + step.waiting + encoders,
        f"{load.validated} pictures at once, in validation": step.validation + vae,
    }
    note = max(moments, key=lambda moment: moments[moment])
    yield Part(ACTIVATIONS, moments[note], note)
    reserve = RESERVE_BYTES + round(FRAGMENTATION * moments[note])
    yield Part(RESERVE, reserve, "CUDA, workspaces, fragmentation: assumed")


def _visiting_bytes(config: RunConfig, counts: Counts) -> tuple[int, int]:
    """Weights of encoders that visit the device: while a step is encoded, and while pictures are decoded."""
    size = element_size(config.base.dtype)
    if config.machine.encoders == "offload":
        frozen = sum(count for name, count in counts.base.items() if name != "transformer")
        return frozen * size, counts.base["vae"] * size
    if config.machine.encoders == "sequential_offload":
        return counts.largest_layer * size, counts.largest_layer * size
    return 0, 0


def is_tight(total: int, available: int) -> bool:
    """Whether what fits leaves so little that an estimate cannot promise it."""
    return available * (1 - TIGHT) < total <= available


def what_would_fit(
    config: RunConfig, shape: BaseShape, counts: Counts, load: Load, available: int
) -> Change | None:
    """The first change of settings, from the cheapest on, with which a step fits; None: none of them does."""
    settings: tuple[str, ...] = ()
    for setting, changed, lighter in _changes(config, load):
        kept = tuple(old for old in settings if old.partition("=")[0] != setting.partition("=")[0])
        config, load, settings = changed, lighter, (*kept, setting)
        if sum(part.bytes for part in _lasting(config, counts, load.experts)) > available:
            continue
        memory = estimate_memory(config, shape, counts, load)
        if memory.total <= available:
            return Change(settings, memory)
    return None


def _changes(config: RunConfig, load: Load) -> Iterator[tuple[str, RunConfig, Load]]:
    """Settings that need less and less, each on top of those before, from what costs least time on."""
    if not load.checkpointing:
        load = load._replace(checkpointing=True)
        yield "machine.gradient_checkpointing=true", config, load
    if config.machine.encoders == "resident":
        config = _with(config, "machine", encoders="offload")
        load = load._replace(ahead=True)
        yield "machine.encoders=offload", config, load
    while load.batch > 1:
        # A micro-batch must divide the batch, so halves are taken only as long as they are whole.
        batch = load.batch // 2 if load.batch % 2 == 0 else 1
        load = load._replace(batch=batch, validated=min(batch, load.validated))
        yield f"machine.micro_batch={load.batch}", config, load
    if config.machine.encoders == "offload":
        config, load = _with(config, "machine", encoders="sequential_offload"), load._replace(ahead=False)
        yield "machine.encoders=sequential_offload", config, load
    for kind in ("torchao_fp8", "nf4"):
        now = config.base.quantisation
        if now is None or QUANTISED[kind] < QUANTISED[now]:
            config, load = _with(config, "base", quantisation=kind), load._replace(quantisation=kind)
            yield f"base.quantisation={kind}", config, load


def _with(config: RunConfig, group: str, **changes: object) -> RunConfig:
    return config.model_copy(update={group: getattr(config, group).model_copy(update=changes)})

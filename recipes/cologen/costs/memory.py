"""Memory of a training step by part, and what would make it fit; computed, not yet measured on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from recipes.cologen.config import RunConfig
from recipes.cologen.costs.activations import Load, StepBytes, step_bytes
from recipes.cologen.costs.parameters import Counts
from recipes.cologen.costs.shapes import BaseShape

FLOAT32 = 4
RESERVE_BYTES = 10**9
"""For the CUDA context and the workspaces of cuBLAS and cuDNN; an assumption."""
FRAGMENTATION = 0.05
"""Of what comes and goes in a step, for gaps that the allocator cannot use; an assumption."""


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


def load_of(config: RunConfig, micro_batch: int, size: tuple[int, int], experts: int) -> Load:
    """What a device is given at once."""
    return Load(
        batch=micro_batch,
        height=size[0],
        width=size[1],
        experts=experts,
        dtype=getattr(torch, config.base.dtype),
        checkpointing=config.machine.gradient_checkpointing,
        source_timestep=config.flow.source_timestep,
    )


def estimate_memory(config: RunConfig, shape: BaseShape, counts: Counts, load: Load) -> Memory:
    """What one device needs for a step, by part."""
    step = step_bytes(shape, config.pool, load)
    return Memory((*_lasting(config, counts, load.experts), *_passing(step, load)), load)


def _lasting(config: RunConfig, counts: Counts, experts: int) -> Iterator[Part]:
    """What is there all the time."""
    size = torch.empty((), dtype=getattr(torch, config.base.dtype)).element_size()
    one = counts.per_expert + counts.router_per_expert
    trained = one + (experts - 1) * counts.router_per_expert * config.pool.train_veteran_gates
    yield Part("transformer", counts.base["transformer"] * size, f"frozen, {config.base.dtype}")
    yield Part(
        "text encoders",
        (counts.base["text_encoder"] + counts.base["text_encoder_2"]) * size,
        f"frozen, {config.base.dtype}, stay on the device",
    )
    yield Part("VAE", counts.base["vae"] * size, f"frozen, {config.base.dtype}, stays on the device")
    yield Part("experts and routers", experts * one * FLOAT32, f"{experts}, float32")
    yield Part("gradients", trained * FLOAT32, "of the newest expert, float32")
    yield Part("optimiser", 2 * trained * FLOAT32, "AdamW, two states in float32")


def _passing(step: StepBytes, load: Load) -> Iterator[Part]:
    """What comes and goes in a step."""
    most = max(step.encoding, step.training)
    pictures = f"{load.batch} x {load.height} x {load.width} pixels"
    how = "with" if load.checkpointing else "without"
    yield Part(ACTIVATIONS, most, f"{pictures}, {how} gradient checkpointing")
    reserve = RESERVE_BYTES + round(FRAGMENTATION * most)
    yield Part(RESERVE, reserve, "CUDA, workspaces, fragmentation: assumed")


def what_would_fit(
    config: RunConfig, shape: BaseShape, counts: Counts, load: Load, available: int
) -> Change | None:
    """The first change of settings, from the cheapest on, with which a step fits; None: none of them does."""
    for settings, changed in _changes(load):
        memory = estimate_memory(config, shape, counts, changed)
        if memory.total <= available:
            return Change(settings, memory)
    return None


def _changes(load: Load) -> Iterator[tuple[tuple[str, ...], Load]]:
    """Loads that need less and less: checkpointed first, since that costs least, then in smaller parts."""
    checkpointing: tuple[str, ...] = ()
    if not load.checkpointing:
        checkpointing, load = ("machine.gradient_checkpointing=true",), load._replace(checkpointing=True)
        yield checkpointing, load
    batch = load.batch
    while batch > 1:
        # A micro-batch must divide the batch, so halves are taken only as long as they are whole.
        batch = batch // 2 if batch % 2 == 0 else 1
        yield (*checkpointing, f"machine.micro_batch={batch}"), load._replace(batch=batch)

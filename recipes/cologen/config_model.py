"""Settings of the base, of flow matching, of the optimiser, and of how a run fits the machine."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Base of every group: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseSettings(Settings):
    """The frozen FLUX model that the experts are added to."""

    path: str
    """A FLUX folder in the layout of diffusers; relative paths are looked up here, then in the repository."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen weights; experts and routers are always trained in float32."""


class FlowSettings(Settings):
    """Flow matching: x_t = (1 - t) x0 + t noise, target noise - x0, t = sigmoid(normal)."""

    source_timestep: Literal["same", "zero"] = "same"
    """Timestep of the source stream: the picture's (paper), or 0, so that sampling computes it only once."""
    guidance: float = 1.0
    """Guidance that a guidance-distilled base is trained with; not read by others."""
    timestep_mean: float = 0.0
    """Mean of the normal whose sigmoid is t; above 0 favours noisy pictures."""
    timestep_std: float = Field(default=1.0, gt=0)
    """Its standard deviation."""


class OptimizerSettings(Settings):
    """AdamW on the newest expert and its gates; each stage has its own learning rate."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of all gradients together."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate of a stage rises from 0."""
    decay_fraction: float = Field(default=0.0, ge=0, le=1)
    """Last part of a stage over which the learning rate falls linearly to 0; 0 keeps it constant."""


class MachineSettings(Settings):
    """How a run fits the machine."""

    micro_batch: int | None = Field(default=None, gt=0)
    """Examples a device takes at once; the rest of the batch is accumulated. None: the whole share."""
    encode_batch: int | None = Field(default=None, gt=0)
    """Pictures or prompts that the frozen encoders take at once; None: all of a micro-batch. With 1 nothing
    depends on batch-mates, to the last bit: what a cache keeps is always encoded so."""
    workers: int = Field(default=0, ge=0)
    """Processes that prepare examples; 0 prepares them in the training process."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

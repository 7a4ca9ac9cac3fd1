"""Settings of the base, of flow matching, of the optimiser, and of how a run fits the machine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Shift = Literal["none", "base", "dynamic"] | Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""How flow times are shifted towards noise: not at all; as the base's own scheduler says; by the number of
image tokens, as FluxPipeline does; or by a factor s, t -> s t / (1 + (s - 1) t)."""
Quantisation = Literal["nf4", "int8", "torchao_int8", "torchao_fp8"]
"""Formats of a frozen base's weights: bitsandbytes' 4-bit and 8-bit, torchao's weight-only 8-bit ones."""


MOST_TEXT_TOKENS = 512
"""FluxPipeline refuses more; Flux2KleinPipeline refuses nothing, but says 512 where it is not told."""


def _check_text_tokens(length: int) -> int:
    if length > MOST_TEXT_TOKENS:
        raise ValueError(
            f"FLUX's pipelines read at most {MOST_TEXT_TOKENS} tokens of a prompt, so no picture could be "
            "generated as in training; give no more, and let longer prompts be cut "
            "(base.long_prompts=truncate)"
        )
    return length


class Settings(BaseModel):
    """Base of every group: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseSettings(Settings):
    """The frozen FLUX model that the experts are added to."""

    path: str
    """A FLUX folder in the layout of diffusers; relative paths are looked up here, then in the repository.
    Else a name on the Hugging Face hub."""
    revision: str | None = None
    """Commit, tag or branch of a base from the hub."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen weights; experts and routers are always trained in float32."""
    max_text_tokens: Annotated[int, Field(gt=0), AfterValidator(_check_text_tokens)] | None = None
    """T5 tokens that a prompt is padded to, at most 512; None: what the base's tokenizer says (FLUX.1-dev:
    512)."""
    long_prompts: Literal["truncate", "refuse"] | None = None
    """What becomes of a prompt with more tokens: its end is cut off, as FluxPipeline does, and the run counts
    it; or it is an error. None: cut those of `data.sets` and `data.held_out_sets`, refuse others."""
    quantisation: Quantisation | None = None
    """Format of the transformer's frozen weights in memory; None: `dtype`. Experts stay float32."""


class FlowSettings(Settings):
    """Flow matching: x_t = (1 - t) x0 + t noise, target noise - x0, t = sigmoid(normal), then shifted."""

    source_timestep: Literal["same", "zero"] = "same"
    """Timestep of the source stream: the picture's (paper), or 0, so that sampling computes it only once."""
    guidance: float = 1.0
    """Guidance that a guidance-distilled base is trained with; not read by others."""
    timestep_mean: float = 0.0
    """Mean of the normal whose sigmoid is t; above 0 favours noisy pictures."""
    timestep_std: float = Field(default=1.0, gt=0)
    """Its standard deviation."""
    shift: Shift = "none"
    """How the times of training are shifted; `sampling.shift` says it for generating pictures."""
    shift_steps: int = Field(default=28, gt=0)
    """Sampling steps that a shift of training is meant for, where it depends on them: FLUX.2's `base` and
    `dynamic` do. `sampling.steps`, which may change at any time, has no part in what is learnt."""


class OptimizerSettings(Settings):
    """AdamW on the newest expert and its gates; each stage has its own learning rate."""

    name: Literal["adamw", "adamw_fused", "adamw_8bit"] = "adamw"
    """torch's AdamW; the same in one fused kernel; or bitsandbytes', whose state has 8 bits."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of all gradients together."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate of a stage rises from 0."""
    decay_fraction: float = Field(default=0.0, ge=0, le=1)
    """Last part of a stage over which the learning rate falls linearly to 0; 0 keeps it constant."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a running average of the newest expert and its gates, which is then what is validated and
    what a finished stage keeps; None keeps the last step's weights."""
    max_skipped_in_a_row: int = Field(default=3, ge=0)
    """Steps in a row that may be skipped because their loss or gradient is not finite. A bad example spoils
    one step; several steps one after another have no example to blame. 0 ends the run at the first."""
    max_skipped: int = Field(default=20, ge=0)
    """Such steps in one stage."""


class MachineSettings(Settings):
    """How a run fits the machine."""

    micro_batch: int | None = Field(default=None, gt=0)
    """Examples a device takes at once; the rest of the batch is accumulated. None: the whole share."""
    other_micro_batch: Literal["refuse", "allow"] = "refuse"
    """Whether a stage that has begun may go on with another number of micro-batches although its veteran loss
    is taken of each (`veteran.per` is `batch`, alpha above 0), and so changes a little."""
    encode_batch: int | None = Field(default=None, gt=0)
    """Pictures or prompts that the frozen encoders take at once; None: all of a micro-batch. With 1 nothing
    depends on batch-mates, to the last bit: what a cache keeps is always encoded so."""
    workers: int = Field(default=0, ge=0)
    """Processes that prepare examples; 0 prepares them in the training process."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    encoders: Literal["resident", "offload", "sequential_offload"] = "resident"
    """Where VAE and text encoders are between uses: on the device; or on the host, from where they come for
    as long as something is encoded, in training once per step; or on the host, from where their layers come
    one by one at every use, which needs the least memory and copies the most."""

    @property
    def encodes_ahead(self) -> bool:
        """Whether training encodes all micro-batches of a step before the first forward pass."""
        return self.encoders == "offload"

    compile: bool = False
    """Compile the transformer's blocks (`compile_repeated_blocks`): a minute or more first, faster steps."""
    compile_backend: str = "inductor"
    """What compiles them, by torch's name."""
    attention: str | None = None
    """How attention is computed, by diffusers' name (`native`, `_native_cudnn`, `flash`, `_flash_3`, `sage`,
    `xformers` ...); None: diffusers' default."""

    @model_validator(mode="after")
    def _check(self) -> MachineSettings:
        keeps_order = self.compile_backend in ("eager", "aot_eager")
        if self.compile and self.gradient_checkpointing and not keeps_order:
            # Found on inductor: a block that is computed again notes no decisions, so it is another graph, of
            # which other tensors are kept for the backward pass than the first time.
            raise ValueError(
                "compile and gradient_checkpointing do not go together: a block that is computed again is "
                "compiled to something else. Set one of them to false, and a smaller micro_batch if need be"
            )
        return self

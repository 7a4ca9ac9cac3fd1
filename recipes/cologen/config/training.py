"""Settings of what is trained for besides the task, and of what a run writes, validates and reports."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recipes.cologen.config.model import Settings, Shift


class VeteranSettings(Settings):
    """How the newest expert's share of the routing is held near a stage's rho (equation 9)."""

    per: Literal["batch", "sample"] = "batch"
    """Whether |U - rho| is taken of the whole batch's share or of each sample's; the paper does not say."""


class DropoutSettings(Settings):
    """Chance, per example, that a condition is withheld."""

    text: float = Field(default=0.1, ge=0, le=1)
    """The prompt becomes empty."""
    source: float = Field(default=0.1, ge=0, le=1)
    """The source picture becomes black. It is never left out: only source tokens reach experts."""


class LoggingSettings(Settings):
    """How often a run writes down where it is."""

    every: int = Field(default=10, gt=0)
    """Steps that one row of metrics.jsonl averages."""
    checkpoint_every: int = Field(default=100, gt=0)
    """Steps between two resumable checkpoints."""
    plain_seconds: float = Field(default=15.0, gt=0)
    """Seconds between two lines of progress where there is no terminal; the first line comes sooner."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Which of accelerate's trackers get the numbers and pictures too: `tensorboard`, `wandb`, `trackio` ...
    metrics.jsonl is written in any case."""
    project: str = "cologen"
    """What trackers that know projects call this one."""


class ValidationSettings(Settings):
    """Scores, losses and pictures during training, on held-out examples that are always the same."""

    every: int = Field(default=200, gt=0)
    """Steps between two validations; there is always one at the end of a stage."""
    samples: int = Field(default=32, ge=0)
    """Held-out examples of a task, which are generated and scored; 0 leaves validation out."""
    tasks: Literal["own", "seen"] = "own"
    """Of which tasks: the stage's own, or also those of the stages before, which shows what is forgotten."""
    loss_samples: int = Field(default=8, ge=0)
    """How many of them the loss at eight fixed times, the shares and the router's entropy are measured on."""
    pictures: int = Field(default=8, ge=0)
    """How many of them are shown as a grid in `validation/` and by the trackers."""


class SamplingSettings(Settings):
    """How pictures are generated for validation and the report."""

    steps: int = Field(default=28, gt=0)
    guidance: float = 3.5
    """Guidance of a guidance-distilled base; not read by others."""
    true_cfg_scale: float = Field(default=1.0, ge=1, allow_inf_nan=False)
    """Scale of true classifier-free guidance, for a base that is not distilled: every step also predicts the
    velocity of `negative_prompt`, and goes away from it. 1 is none, at half the cost."""
    negative_prompt: str = ""
    """What true guidance goes away from; the empty prompt is what `dropout.text` trains."""
    shift: Shift = "base"
    """How the sampling steps are shifted towards noise; `base` is what FluxPipeline would do."""

    @model_validator(mode="after")
    def _check_guidance(self) -> SamplingSettings:
        if self.negative_prompt and self.true_cfg_scale == 1:
            raise ValueError(
                "sampling.negative_prompt would do nothing with sampling.true_cfg_scale=1; give a scale "
                "above 1"
            )
        return self


class ReportSettings(Settings):
    """The report at the end of a run."""

    samples: int = Field(default=200, gt=0)
    """Held-out examples per task and score."""

"""The shift of flow times towards noise, one law for training, validation and sampling; in float32.

A factor s takes a time t to s t / (1 + (s - 1) t). Where s comes from is the setting `Shift`: a larger
picture needs more noise to be hidden, so FLUX.1-dev's grows with the number of image tokens.
Source: Esser et al. 2024 (arXiv 2403.03206), section 5.3.2; diffusers' FlowMatchEulerDiscreteScheduler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from recipes.cologen.config.model import Shift

SHIFTED = ("use_dynamic_shifting", "shift")
"""Settings of a scheduler that a law changes."""


def scheduler_for(config: Mapping[str, Any], shift: Shift) -> FlowMatchEulerDiscreteScheduler:
    """A fresh scheduler of a base's settings that shifts its steps as asked.

    Args:
        config: of the base's own scheduler.
        shift: the law.
    """
    if shift == "base":
        changed: dict[str, Any] = {}
    elif shift == "dynamic":
        changed = {"use_dynamic_shifting": True}
    else:
        changed = {"use_dynamic_shifting": False, "shift": 1.0 if shift == "none" else float(shift)}
    return FlowMatchEulerDiscreteScheduler.from_config(config, **changed)


def dynamic_mu(config: Mapping[str, Any], num_tokens: int) -> float:
    """FluxPipeline's mu for a number of image tokens: linear between the scheduler's two anchors."""
    return float(
        calculate_shift(
            num_tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
    )


def shift_factor(config: Mapping[str, Any], shift: Shift, mu: float) -> float:
    """The factor s for pictures of one size.

    Args:
        config: of the base's own scheduler.
        shift: the law.
        mu: the base's own for that size (`FluxBase.schedule_shift`); read where the law is dynamic.
    """
    own = scheduler_for(config, shift).config
    if not own.use_dynamic_shifting:
        return float(own.shift)
    return math.exp(mu) if own.get("time_shift_type", "exponential") == "exponential" else mu


def shift_times(times: Tensor, factor: float) -> Tensor:
    """Shift times in [0, 1] by a factor, in float32; 1 leaves them as they are."""
    times = times.float()
    return times if factor == 1.0 else factor * times / (1 + (factor - 1) * times)

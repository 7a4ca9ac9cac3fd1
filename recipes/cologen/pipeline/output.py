"""What a call of the pipeline gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput

from recipes.cologen.pipeline.routing import RoutingTrace


@dataclass
class CoLoGenPipelineOutput(BaseOutput):  # type: ignore[misc]  # diffusers is untyped
    """Pictures, and the routing where it was asked for."""

    images: Any
    """PIL pictures, or a numpy array `[pictures, height, width, 3]`, or a tensor `[pictures, 3, height,
    width]`, in [0, 1]; or packed latents."""
    routing: RoutingTrace | None = None
    """With `output_routing=True`: which expert each source token went to, at every block and step."""

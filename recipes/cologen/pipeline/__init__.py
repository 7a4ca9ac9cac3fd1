"""Diffusers pipelines over FLUX.1 and FLUX.2 klein with a source stream and a pool of routed experts."""

from __future__ import annotations

from diffusers import Flux2KleinPipeline

from recipes.cologen.flux.base import FluxBase
from recipes.cologen.pipeline.card import Card, Shown
from recipes.cologen.pipeline.flux1 import CoLoGenPipeline
from recipes.cologen.pipeline.flux2 import CoLoGenFlux2Pipeline
from recipes.cologen.pipeline.plotting import plot_routing
from recipes.cologen.pipeline.routing import CoLoGenPipelineOutput, RoutingTrace
from recipes.cologen.runs.generation import GenerationSettings

__all__ = [
    "Card",
    "CoLoGenFlux2Pipeline",
    "CoLoGenPipeline",
    "CoLoGenPipelineOutput",
    "RoutingTrace",
    "Shown",
    "pipeline_over",
    "plot_routing",
]


def pipeline_over(
    model: FluxBase, generation: GenerationSettings | None = None
) -> CoLoGenPipeline | CoLoGenFlux2Pipeline:
    """Give the pipeline of a base's family, over the very same parts, its pool among them.

    Args:
        model: The base.
        generation: What the run that trained its pool fixes for generation (`generation_settings(config)`);
            None for a base alone.
    """
    stock = model.pipeline()
    pipe: CoLoGenPipeline | CoLoGenFlux2Pipeline
    if isinstance(stock, Flux2KleinPipeline):
        pipe = CoLoGenFlux2Pipeline(**stock.components, is_distilled=stock.config.is_distilled)
    else:
        pipe = CoLoGenPipeline(**stock.components)
    if generation is not None:
        pipe.generate_as(generation)
    return pipe

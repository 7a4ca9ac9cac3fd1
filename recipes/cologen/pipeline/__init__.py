"""CoLoGenPipeline, a diffusers pipeline over FLUX.1 with a source stream and a pool of routed experts."""

from recipes.cologen.pipeline.output import CoLoGenPipelineOutput
from recipes.cologen.pipeline.pipeline import CoLoGenPipeline
from recipes.cologen.pipeline.plotting import plot_routing
from recipes.cologen.pipeline.routing import RoutingTrace

__all__ = ["CoLoGenPipeline", "CoLoGenPipelineOutput", "RoutingTrace", "plot_routing"]

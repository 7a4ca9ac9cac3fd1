"""Layers in pure torch: expert weights, the site that decides for K and V, the routed projection; no PEFT."""

from prw.layers.experts import ExpertNames, add_expert_weights, add_router_vectors, expert_names
from prw.layers.noise import NoiseStream
from prw.layers.pairs import pair_of
from prw.layers.pool import Pool, Scope
from prw.layers.projection import RoutedProjection
from prw.layers.site import Site, SiteRecord

__all__ = [
    "ExpertNames",
    "NoiseStream",
    "Pool",
    "RoutedProjection",
    "Scope",
    "Site",
    "SiteRecord",
    "add_expert_weights",
    "add_router_vectors",
    "expert_names",
    "pair_of",
]

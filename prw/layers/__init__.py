"""Layers in pure torch: expert weights, the site that decides for K and V, the routed projection; no PEFT."""

from prw.layers.auxiliary import AddedLoss, AuxiliaryLoss
from prw.layers.experts import (
    ExpertNames,
    add_expert_weights,
    add_router_vectors,
    container_names,
    expert_names,
    pair_names,
)
from prw.layers.pairs import pair_of
from prw.layers.pool import Pool, Scope
from prw.layers.projection import RoutedProjection
from prw.layers.reach import name_unreached
from prw.layers.reading import explained
from prw.layers.rows import WHOLE, Part, Rows, add_rows
from prw.layers.site import Site, SiteRecord

__all__ = [
    "WHOLE",
    "AddedLoss",
    "AuxiliaryLoss",
    "ExpertNames",
    "Part",
    "Pool",
    "RoutedProjection",
    "Rows",
    "Scope",
    "Site",
    "SiteRecord",
    "add_expert_weights",
    "add_router_vectors",
    "add_rows",
    "container_names",
    "expert_names",
    "explained",
    "name_unreached",
    "pair_names",
    "pair_of",
]

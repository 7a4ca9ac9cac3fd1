"""Layers in pure torch: expert weights, the site that decides for K and V, the routed linear; no PEFT."""

from prw.layers.added_loss import AddedLoss, AuxiliaryLoss
from prw.layers.experts import (
    ExpertNames,
    add_expert_weights,
    add_router_vectors,
    container_names,
    expert_names,
    pair_names,
    pair_of,
)
from prw.layers.pool import Pool, Scope
from prw.layers.reached import name_unreached
from prw.layers.routed_linear import WHOLE, RoutedLinear, describe_kernel
from prw.layers.site import Site, SiteRecord

__all__ = [
    "WHOLE",
    "AddedLoss",
    "AuxiliaryLoss",
    "ExpertNames",
    "Pool",
    "RoutedLinear",
    "Scope",
    "Site",
    "SiteRecord",
    "add_expert_weights",
    "add_router_vectors",
    "container_names",
    "describe_kernel",
    "expert_names",
    "name_unreached",
    "pair_names",
    "pair_of",
]

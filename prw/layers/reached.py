"""Which sites the training forwards reach: those whose projections nobody calls are named, each once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import nn

from prw.layers.pool import Pool
from prw.layers.routed_linear import RoutedLinear
from prw.layers.site import Site
from prw.routing import Routing

SHOWN = 5
"""How many sites a warning names."""


def name_unreached(model: nn.Module, pool: Pool, routing: Routing, forward: bool = False) -> None:
    """Warn of the sites that a recorded training forward did not reach; never twice of one site.

    A batch that does not need a site leaves it out too (text only, a skipped layer), so this is no error; and
    a site that was reached once is never named.

    Args:
        model: The model.
        pool: Its pool.
        routing: What was recorded.
        forward: Whether it is known that the whole model ran in training. If not, a decision that was made in
            training tells it, or a projection's weight that was read.
    """
    if pool.all_settled or torch.compiler.is_compiling():
        return
    sites = sites_of_pool(model, pool)
    pool.settled.update(site.name for site in sites if site.name in routing.decisions and not site.read_past)
    open_sites = [site for site in sites if site.name not in pool.settled]
    missing = [site for site in open_sites if site.acts]
    ran = forward or any(site.router.training for site in sites if site.name in routing.decisions)
    past = [site for site in missing if site.read_past and (ran or site.router.training)]
    reached = {site.name for site in past} | set(routing.decisions)
    unused = [site for site in missing if site.name not in reached] if ran else []
    if past:
        warnings.warn(read_past(past), stacklevel=3)
    if unused:
        warnings.warn(not_called(unused, len(sites)), stacklevel=3)
    pool.settled.update(site.name for site in (*past, *unused))
    pool.all_settled = all(site.name in pool.settled for site in open_sites)


def sites_of_pool(model: nn.Module, pool: Pool) -> list[Site]:
    """List the sites of a pool, in the model's order."""
    layers = (module for module in model.modules() if isinstance(module, RoutedLinear))
    sites = {id(site): site for layer in layers for site in layer.sites.values() if site.pool is pool}
    return list(sites.values())


def read_past(sites: list[Site]) -> str:
    """Say that blocks have read the weights of their projections and not called them."""
    return (
        f"the experts at {listed(sites)} have no effect: their blocks read the weights of "
        f"{', '.join(sites[0].read_past)} and did not call them in this training forward. Leave them out "
        "with exclude=, or let the blocks call their projections."
    )


def not_called(sites: list[Site], total: int) -> str:
    """Say that projections were not called, and when that is as it should be."""
    return (
        f"this training forward reached {total - len(sites)} of {total} sites, so the experts at "
        f"{listed(sites)} neither acted nor trained in it. A batch that does not use those blocks is no "
        "fault (text without pictures, skipped layers); blocks that never call their projections are to be "
        "left out with exclude=."
    )


def listed(sites: Iterable[Site]) -> str:
    """List the names of sites, the first few of many."""
    names = [site.name for site in sites]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

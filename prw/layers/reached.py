"""Which sites the training forwards reach; those whose projections are never called are reported once."""

from __future__ import annotations

import warnings

import torch

from prw.errors import first_few
from prw.layers.pool import Pool
from prw.layers.site import Site
from prw.routing import Routing


def name_unreached(pool: Pool, routing: Routing, forward: bool = False) -> None:
    """Warn of the sites that a recorded training forward did not reach; never twice of one site.

    A batch that does not need a site leaves it out too (text only, a skipped layer), so this is no error; and
    a site that was reached once is never named.

    Args:
        pool: The pool of the model.
        routing: What was recorded.
        forward: Whether it is known that the whole model ran in training. If not, a decision that was made in
            training tells it, or a projection's weight that was read.
    """
    if pool.all_settled or torch.compiler.is_compiling():
        return
    sites = pool.sites
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


def read_past(sites: list[Site]) -> str:
    """Say that blocks have read the weights of their projections and not called them."""
    return (
        f"the experts at {named(sites)} have no effect: their blocks read the weights of "
        f"{', '.join(sites[0].read_past)} and did not call them in this training forward. Leave them out "
        "with exclude=, or let the blocks call their projections."
    )


def not_called(sites: list[Site], total: int) -> str:
    """Say that projections were not called, and when that is as it should be."""
    return (
        f"this training forward reached {total - len(sites)} of {total} sites, so the experts at "
        f"{named(sites)} neither acted nor trained in it. A batch that does not use those blocks is no "
        "fault (text without pictures, skipped layers); blocks that never call their projections are to be "
        "left out with exclude=."
    )


def named(sites: list[Site]) -> str:
    """List the first five sites of many."""
    return first_few([site.name for site in sites], 5)

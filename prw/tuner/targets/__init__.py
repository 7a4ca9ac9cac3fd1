"""Which projections of a model get experts, on which rows, and which share a site: from names to a plan."""

from prw.tuner.targets.plan import (
    PoolPlan,
    SitePlan,
    excluded_paths,
    passed_over,
    passed_over_note,
    plan_pool,
    refuse_outside,
    rename_saved,
)
from prw.tuner.targets.projections import projections_of, unwrapped, widths_of

__all__ = [
    "PoolPlan",
    "SitePlan",
    "excluded_paths",
    "passed_over",
    "passed_over_note",
    "plan_pool",
    "projections_of",
    "refuse_outside",
    "rename_saved",
    "unwrapped",
    "widths_of",
]

"""The routed projection: every item through its chosen experts; one signature, several backends."""

from prw.kernels.all_at_once import all_at_once
from prw.kernels.opaque import opaquely
from prw.kernels.projection import Projection, into_rank_space, line_up, onto, routed_projections
from prw.kernels.reference import reference
from prw.kernels.select import NAMES, VARIABLE, Case, Choice, choose, forced
from prw.kernels.work import Columns, Work

__all__ = [
    "NAMES",
    "VARIABLE",
    "Case",
    "Choice",
    "Columns",
    "Projection",
    "Work",
    "all_at_once",
    "choose",
    "forced",
    "into_rank_space",
    "line_up",
    "onto",
    "opaquely",
    "reference",
    "routed_projections",
]

"""The routed projection, `gate * scale * B_e A_e x` of each item's chosen experts, on several backends.

`make_plan`, `shrink` and `expand` are the way of eager code; `custom_op` is the same for compiled graphs,
`traceable` for all other transforms of torch, and `reference` defines what they compute.
"""

from prw.kernels.autograd import expand, shrink
from prw.kernels.custom_op import custom_op
from prw.kernels.dispatch_plan import DispatchPlan, make_plan
from prw.kernels.output_slice import OutputSlice, add_to_slices
from prw.kernels.reference import reference
from prw.kernels.select import NAMES, VARIABLE, Case, Choice, choose, forced
from prw.kernels.traceable import traceable

__all__ = [
    "NAMES",
    "VARIABLE",
    "Case",
    "Choice",
    "DispatchPlan",
    "OutputSlice",
    "add_to_slices",
    "choose",
    "custom_op",
    "expand",
    "forced",
    "make_plan",
    "reference",
    "shrink",
    "traceable",
]

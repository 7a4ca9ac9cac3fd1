"""The routed projection's products as Triton kernels, for CUDA; import this room only when it was chosen.

`plan` sorts the choices by expert on the device; `shrink`, `expand`, `add_to` and `weight_gradient` are the
products of which the projection's forward and backward are made. Nothing here waits for the device or reads
from it, and every shape follows from the inputs' shapes, so all of it can be captured into a
CUDA graph.
"""

from prw.errors import ConfigError

try:
    import triton as _triton
except ImportError as error:
    raise ConfigError(
        f"kernel='triton' needs the package triton, which cannot be imported here ({error}). Install it (on "
        "Linux: pip install 'prw[triton]'; CUDA builds of torch bring it), or choose kernel='auto'."
    ) from error

if [int(part) for part in _triton.__version__.split(".")[:2]] < [3, 3]:
    raise ConfigError(
        f"kernel='triton' needs triton 3.3 or newer, which takes tuples as arguments, but this is "
        f"{_triton.__version__}. Update it together with torch (Linux: pip install 'prw[triton]'), or "
        "choose kernel='auto'."
    )

from prw.kernels.triton.planning import Plan, plan
from prw.kernels.triton.products import add_to, expand, shrink, weight_gradient

__all__ = ["Plan", "add_to", "expand", "plan", "shrink", "weight_gradient"]

"""The one place that turns a kernel's name into a kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from prw.errors import ConfigError
from prw.kernels.dense import dense
from prw.kernels.reference import reference

Kernel = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor], Tensor, Tensor, float], Tensor]

KERNELS: Mapping[str, Kernel] = {"auto": dense, "dense": dense, "reference": reference}
"""Every kernel by name; `auto` is what is taken unless one is forced by name.

A plain dict, since torch.compile cannot trace a MappingProxyType once any dict has changed.
"""


def select(name: str) -> Kernel:
    """Give the kernel of that name.

    Raises:
        ConfigError: if there is none.
    """
    if name not in KERNELS:
        raise ConfigError(f"there is no kernel {name!r}; kernels are {', '.join(KERNELS)}.")
    return KERNELS[name]

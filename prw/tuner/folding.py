"""Experts folded into weights beside the base's for a while, where no expert's share depends on the input.

Other than merging this changes nothing: the base's weights stay where and as they are, so tokens that are not
routed still get them, and whatever a folded weight would not be right for goes the usual way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from prw.errors import PoolError, UnsupportedError
from prw.layers import Pool
from prw.tuner.layer import Folded, PrwLinear
from prw.tuner.merging import constant_weights, delta, is_transposed, plain_weight


@contextmanager
def folded(layers: Mapping[str, PrwLinear], adapter: str) -> Iterator[None]:
    """Give every projection the sum of its base's weight and its experts', inside a `with` block.

    Args:
        layers: The projections of the pool, by path.
        adapter: Adapter name.

    Raises:
        PoolError: if the pool is empty or switched off, or is folded already.
        UnsupportedError: if a weight depends on the input, or a base is no plain Linear in float32; nothing
            has changed then.
    """
    pool = next(iter(layers.values())).sites[adapter].pool
    refuse(pool, layers, adapter)
    made = {layer: fold(path, layer, adapter, pool.size) for path, layer in layers.items()}
    try:
        for layer, weight in made.items():
            layer.folded = weight
        yield
    finally:
        for layer in made:
            del layer.folded
            layer.folded = None


def refuse(pool: Pool, layers: Mapping[str, PrwLinear], adapter: str) -> None:
    """Refuse a pool that cannot be folded as it is; see `folded`."""
    size, settings = pool.size, pool.settings
    off = any(layer.disable_adapters or adapter not in layer.active_adapters for layer in layers.values())
    if size == 0 or off:
        raise PoolError("the pool is empty or switched off, so there are no experts to fold.")
    if any(layer.folded is not None for layer in layers.values()):
        raise PoolError("the experts are folded already; use the block that is open.")
    if not constant_weights(pool, size):
        raise UnsupportedError(
            f"the experts cannot be folded: the router weighs {size} of them ({settings.gate} gate, top "
            f"{min(settings.top_k, size)}) by the input, so their weights differ between "
            f"{settings.granularity}s and, where the input changes, between steps. Constant is a pool of one "
            f"expert, the pool as of its first (weave.as_of({pool.experts[0]!r})), or gate='unit' with top_k "
            "of at least the pool's size."
        )


def fold(path: str, layer: PrwLinear, adapter: str, size: int) -> Folded:
    """Work out the weight of one projection, in float64 and rounded once.

    Raises:
        UnsupportedError: if its base is no plain Linear in float32, or something watches or fetches it.
    """
    weight = plain_weight(path, layer, owners=1)
    base = layer.base_layer
    if base._forward_hooks or base._forward_pre_hooks or "forward" in base.__dict__:
        raise UnsupportedError(
            f"{path} has hooks on its base, as offloading by leaf puts there, which a folded weight would "
            "pass over. Take them off first, or do not fold."
        )
    change = torch.stack([delta(layer, adapter, index) for index in range(size)]).sum(0)
    whole = weight.detach().T if is_transposed(base) else weight.detach()
    total = (whole.double() + change).to(weight.dtype)
    return Folded(total, adapter, size, layer.strengths[adapter])

"""What trains beside a pool, such as an unfrozen head or modules_to_save, and whether it has changed.

A pool is saved and recalled stage by stage; what trains beside it is not. So the end of each stage stores its
checksums in the pool's configuration, which show later that the model is no longer that stage's.
"""

from __future__ import annotations

import zlib

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.weak import WeakIdKeyDictionary

from prw.tuner.config import PrwConfig
from prw.tuner.injection import base_parameters

UNKNOWN = -1
"""The checksum of a weight that is on no device, like an offloaded one."""

_SUMS = WeakIdKeyDictionary()
"""A parameter's version and place in memory, and the checksum of its bits then."""


def parameters_beside(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """List what trains and belongs to no adapter, and a pool's own copies of modules_to_save.

    Args:
        model: The model.
        adapter: Name of the pool's adapter; what other adapters train is theirs.

    Returns:
        By name without wrappers and adapters.
    """
    return dict(base_parameters(model, adapter, only_training=True))


def note_beside(model: nn.Module, adapter: str, config: PrwConfig) -> None:
    """Store the checksums of what trained beside the newest expert, as its stage ends."""
    beside = parameters_beside(model, adapter)
    if beside:
        sums = {name: checksum(parameter) for name, parameter in beside.items()}
        config.trained_beside = {**config.trained_beside, config.experts[-1]: sums}


def changed_since(model: nn.Module, adapter: str, config: PrwConfig, expert: str) -> list[str]:
    """List the parameters beside the pool that are not known to be as they were when a stage ended.

    Args:
        model: The model.
        adapter: Name of the pool's adapter.
        config: The pool's configuration.
        expert: The stage's expert; the newest one, while it trains, is what it is.
    """
    place = config.experts.index(expert)
    if torch.compiler.is_compiling():
        return []
    if place == len(config.experts) - 1 and not config.newest_frozen:
        return []
    beside = parameters_beside(model, adapter)
    if not beside and not config.trained_beside:
        return []
    suspects = set(beside)
    for later in config.experts[place:]:
        suspects.update(config.trained_beside.get(later, {}))
    then = config.trained_beside.get(expert, {})
    now = {name: found for name, found in base_parameters(model, adapter) if name in suspects}
    sums = {name: checksum(found) for name, found in now.items() if name in then}
    same = {name for name, total in sums.items() if total == then[name] != UNKNOWN}
    return sorted(suspects - same)


def checksum(parameter: nn.Parameter) -> int:
    """Return the checksum of a parameter's bits; it is computed once until the parameter changes.

    Where it is split over several processes, all of them must call this. A change that torch does not count,
    such as `parameter.data.mul_(2)`, goes unnoticed.

    Returns:
        The checksum; UNKNOWN where accelerate has offloaded the weights.
    """
    if parameter.is_meta:
        return UNKNOWN
    if parameter.is_inference():
        return crc(parameter)
    state = (parameter._version, parameter.data_ptr() if not isinstance(parameter, DTensor) else 0)
    if parameter not in _SUMS or _SUMS[parameter][0] != state:
        _SUMS[parameter] = (state, crc(parameter))
    total: int = _SUMS[parameter][1]
    return total


def crc(parameter: nn.Parameter) -> int:
    """Compute the checksum of a parameter's bits."""
    weight = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    bits = weight.detach().cpu().contiguous().flatten().view(torch.uint8)
    return zlib.crc32(bits.numpy().data)

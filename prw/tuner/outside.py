"""What trains beside a pool, as a head that was unfrozen or modules_to_save; and whether it has changed.

A pool is saved and recalled stage by stage, and what lies beside it is not. So the end of each stage notes a
checksum of what trained beside it, in the pool's configuration; that shows later that the model is
not the one of that stage any more.
"""

from __future__ import annotations

import zlib

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.distributed.tensor import DTensor

from prw.tuner.config import PrwConfig
from prw.tuner.injection import base_flags

SHOWN = 3
"""How many parameters a message names."""


def trained_beside(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """Name what trains and belongs to no adapter, and a pool's own copies of modules_to_save.

    Args:
        model: The model.
        adapter: Name of the pool's adapter; what other adapters train is theirs.
    """
    base = {id(parameter) for _, parameter, trains in base_flags(model) if trains}
    copies = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
        for name, part in module.named_modules()
        if name.split(".")[-1] == adapter
        for parameter in part.parameters()
        if parameter.requires_grad
    }
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in base | copies}


def note_beside(model: nn.Module, adapter: str, config: PrwConfig) -> None:
    """Note what trained beside the newest expert, as its stage ends."""
    beside = trained_beside(model, adapter)
    if beside:
        sums = {name: checksum(parameter) for name, parameter in beside.items()}
        config.trained_beside = {**config.trained_beside, config.experts[-1]: sums}


def changed_since(model: nn.Module, adapter: str, config: PrwConfig, expert: str) -> list[str]:
    """Name the parameters beside the pool that are not known to be what they were when a stage ended.

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
    suspects = set(trained_beside(model, adapter))
    for later in config.experts[place:]:
        suspects.update(config.trained_beside.get(later, {}))
    then = config.trained_beside.get(expert, {})
    now = {name: parameter for name, parameter in model.named_parameters() if name in suspects}
    same = {name for name, parameter in now.items() if name in then and then[name] == checksum(parameter)}
    return sorted(suspects - same)


def checksum(parameter: nn.Parameter) -> int:
    """Sum up a parameter's bits; every process must ask where it is split over several."""
    weight = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    bits = weight.detach().cpu().contiguous().flatten().view(torch.uint8)
    return zlib.crc32(bits.numpy().data)


def shown(names: list[str]) -> str:
    """Show the first few names."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")

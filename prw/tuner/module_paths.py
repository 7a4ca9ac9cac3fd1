"""Paths of modules and weights without wrappers and adapters, and the models inside wrappers."""

from __future__ import annotations

import re

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from prw.errors import UnsupportedError

INSIDE = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Where torch.compile, torch's checkpoint wrapper and FSDP1 keep the module that they wrap. Unlike DDP they
show its attributes, so that its path without these parts leads to it as well."""
PARAMETERS_FIXED = ("DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")
"""Wrappers that note at their start which parameters they synchronise, and so would leave new ones out."""

PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the name of every weight, in its files and around a model."""
AROUND = re.compile(r"(\.base_layer)+(?=\.(?:prw_|out_proj\.|[^.]+$))")
"""Where adapters keep a projection, or an nn.MultiheadAttention with its `out_proj`, in the name of a weight.
Another module that a model calls `base_layer` is part of the path."""


def base_path(weight: str) -> str:
    """Return the name of a weight without the wrappers and adapters around its projection.

    Args:
        weight: Name of a parameter, or of a pool's weight.
    """
    return AROUND.sub("", plain_path(weight))


def plain_path(path: str) -> str:
    """Return the path that a module has without wrappers; it leads to the module with them too."""
    return ".".join(part for part in path.split(".") if part not in INSIDE)


def inner_model(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers, like those of torch.compile and DataParallel, or the model itself."""
    while (inner := wrapped_by(model)) is not None:
        model = inner
    return model


def module_at(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a path, without wrappers around it."""
    return inner_model(model.get_submodule(path))


def wrapped_by(model: nn.Module) -> nn.Module | None:
    """Return the module inside a wrapper; None if it is not a known wrapper."""
    names: tuple[str, ...] = INSIDE
    if isinstance(model, DataParallel | DistributedDataParallel) or is_fixed(model):
        names = (*INSIDE, "module")
    return next((model._modules[name] for name in names if name in model._modules), None)


def is_fixed(model: nn.Module) -> bool:
    """Whether a wrapper would not synchronise parameters that come later."""
    return any(kind.__name__ in PARAMETERS_FIXED for kind in type(model).__mro__)


def refuse_fixed(model: nn.Module) -> None:
    """Refuse a model whose wrapper has noted its parameters already.

    Raises:
        UnsupportedError: names the wrapper and says what comes first.
    """
    outer: nn.Module | None = model
    while outer is not None:
        if is_fixed(outer):
            raise UnsupportedError(
                f"the model is wrapped by {type(outer).__name__}, which noted at its start which parameters "
                "it synchronises and would leave new experts out. Inject the pool and add its experts first, "
                "then wrap the model."
            )
        outer = wrapped_by(outer)

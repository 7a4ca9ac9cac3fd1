"""Wrappers around a model or a block that leave its computation alone and put a prefix before its paths."""

from __future__ import annotations

import re

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from prw.errors import UnsupportedError

INSIDE = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Where torch.compile, torch's checkpoint wrapper and FSDP1 keep the module that they wrap. Other than DDP
they show its attributes, so that its path without these parts leads to it as well."""
PARAMETERS_FIXED = ("DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")
"""Wrappers that note at their start which parameters they synchronise, and so would pass over new ones."""

PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the name of every weight, in its files and around a model."""
AROUND = re.compile(r"(\.base_layer)+(?=\.(?:prw_|out_proj\.|[^.]+$))")
"""Where adapters keep a projection, or an nn.MultiheadAttention with its `out_proj`, in the name of a weight.
Another module that a model calls `base_layer` is part of the path."""


def base_path(weight: str) -> str:
    """Give the name of a weight without the wrappers and adapters around its projection.

    Args:
        weight: Name of a parameter, or of a pool's weight.
    """
    return AROUND.sub("", plain_path(weight))


def plain_path(path: str) -> str:
    """Give the path that a module has without wrappers; it leads to the module with them too."""
    return ".".join(part for part in path.split(".") if part not in INSIDE)


def inner_model(model: nn.Module) -> nn.Module:
    """Give the model inside torch.compile's, DataParallel's and like wrappers, or the model itself."""
    while (inner := wrapped_by(model)) is not None:
        model = inner
    return model


def module_at(model: nn.Module, path: str) -> nn.Module:
    """Give the module at a path, without wrappers around it."""
    return inner_model(model.get_submodule(path))


def wrapped_by(model: nn.Module) -> nn.Module | None:
    """Give the module that a wrapper is around; None if it is no wrapper that is known."""
    names: tuple[str, ...] = INSIDE
    if isinstance(model, DataParallel | DistributedDataParallel) or is_fixed(model):
        names = (*INSIDE, "module")
    return next((model._modules[name] for name in names if name in model._modules), None)


def is_fixed(model: nn.Module) -> bool:
    """Tell whether a wrapper would not synchronise parameters that come later."""
    return any(kind.__name__ in PARAMETERS_FIXED for kind in type(model).__mro__)


def refuse_fixed(model: nn.Module) -> None:
    """Refuse to put experts into a model whose wrapper has noted its parameters already.

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

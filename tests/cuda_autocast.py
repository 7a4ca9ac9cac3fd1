"""CUDA's autocast on the CPU: the operations that it computes in float32, and the CPU's autocast does not.

Source: the lists AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE in torch's ATen/autocast_mode.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

FLOAT32 = (
    *("exp", "log", "log1p", "expm1", "reciprocal", "rsqrt", "softplus"),
    *("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar"),
    *("layer_norm", "native_layer_norm", "rms_norm", "group_norm", "logsumexp", "cosine_similarity"),
    *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"),
    *("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"),
    *("prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumsum", "cumprod", "sum"),
    *("sum.dim_IntList", "linalg_vector_norm"),
)
"""Operations of both lists that models here use, by their names in torch.ops.aten."""

AUTOCAST = torch._C.DispatchKey.AutocastCPU


def in_float32(value: Any) -> Any:
    """Cast 16-bit tensors, also within lists."""
    if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return value.float()
    return [in_float32(one) for one in value] if isinstance(value, list | tuple) else value


def computed_in_float32(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Give an operation as CUDA's autocast runs it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(AUTOCAST)):
            cast = {name: in_float32(value) for name, value in kwargs.items()}
            return operation(*map(in_float32, args), **cast)

    return run


@contextmanager
def cuda_autocast(dtype: torch.dtype = torch.bfloat16) -> Iterator[None]:
    """Autocast on the CPU, with the operations that CUDA computes in float32 computed so."""
    with torch.library._scoped_library("aten", "IMPL", AUTOCAST.name) as library:
        replace(library)
        with torch.autocast("cpu", dtype):
            yield


def replace(library: Library) -> None:
    """Add what CUDA's autocast casts and the CPU's does not."""
    for name in FLOAT32:
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", AUTOCAST.name):
            continue
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
        library.impl(operation, computed_in_float32(operation))

"""CUDA's numerics on a CPU, as far as they decide how many bytes a step holds.

CUDA's autocast computes norms and some other functions in float32, which the CPU's does not. CUDA has one
kernel for RMS norm, the CPU a chain of operations that autograd saves. Linear layers that bitsandbytes
quantises give back the dtype that they were given. Source of the list: torch's `ATen/autocast_mode.h`,
`AT_FORALL_FP32` and `AT_FORALL_FP32_SET_OPT_DTYPE`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

FLOAT32_UNDER_AUTOCAST = frozenset(
    {
        "acos",
        "asin",
        "binary_cross_entropy_with_logits",
        "cdist",
        "cosh",
        "cosine_embedding_loss",
        "cosine_similarity",
        "cumprod",
        "cumsum",
        "dist",
        "erfinv",
        "exp",
        "expm1",
        "group_norm",
        "hinge_embedding_loss",
        "huber_loss",
        "interpolate",
        "kl_div",
        "l1_loss",
        "layer_norm",
        "log",
        "log10",
        "log1p",
        "log2",
        "log_softmax",
        "logsumexp",
        "margin_ranking_loss",
        "mse_loss",
        "multi_margin_loss",
        "multilabel_margin_loss",
        "native_layer_norm",
        "nll_loss",
        "norm",
        "pdist",
        "poisson_nll_loss",
        "pow",
        "prod",
        "reciprocal",
        "renorm",
        "rms_norm",
        "rsqrt",
        "sinh",
        "smooth_l1_loss",
        "soft_margin_loss",
        "softmax",
        "softplus",
        "sum",
        "tan",
        "triplet_margin_loss",
    }
)
"""Names of the functions that CUDA's autocast computes in float32."""


class CudaNumerics(TorchFunctionMode):
    """While it is entered, torch's functions keep and give what they would on CUDA; autocast is the CPU's.

    A backward pass that computes checkpointed blocks again is started by `backward` of this file.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function as CUDA's autocast would."""
        kwargs, name = kwargs or {}, getattr(function, "__name__", "").strip("_")
        if torch.is_autocast_enabled("cpu") and name in FLOAT32_UNDER_AUTOCAST:
            with torch.autocast("cpu", enabled=False):
                args, kwargs = tree_map(_widened, (args, kwargs))
                return _called(name, function, args, kwargs)
        return _called(name, function, args, kwargs)


def backward(loss: Tensor) -> None:
    """Go back from a loss inside the mode, which torch would leave meanwhile if it were given a tensor."""
    torch.autograd.backward(get_gradient_edge(loss))


def _widened(value: object) -> object:
    """A 16-bit float tensor in float32; anything else as it is."""
    is_half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_half else value  # type: ignore[attr-defined]


def _called(name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name == "rms_norm" and isinstance(args[0], Tensor):
        return _fused_rms_norm(*args, **kwargs)
    return function(*args, **kwargs)


def _fused_rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """RMS norm over the last axis; arguments are named as torch names them."""
    return _FusedRmsNorm.apply(input, weight, eps)  # type: ignore[no-any-return, no-untyped-call]


class _FusedRmsNorm(torch.autograd.Function):
    """RMS norm as one kernel: it saves its input and one number a row (`aten::_fused_rms_norm` on CUDA)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor | None, eps: float | None) -> Tensor:
        """Give x / rms(x) * weight in the dtype of x."""
        smallest = torch.finfo(torch.float32).eps if eps is None else eps
        rate = hidden.float().square().mean(-1, keepdim=True).add_(smallest).rsqrt_()
        ctx.save_for_backward(hidden, weight, rate)
        normed = hidden * rate.to(hidden.dtype)
        return normed if weight is None else normed.mul_(weight.to(hidden.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Give the gradient of x; the weights of a frozen base want none."""
        hidden, weight, rate = ctx.saved_tensors
        scaled = grad * rate.to(grad.dtype) if weight is None else grad * weight.to(grad.dtype) * rate
        along = (scaled * hidden).mean(-1, keepdim=True).mul_(rate).mul_(rate)
        return (scaled - hidden * along).to(hidden.dtype), None, None


class Linear4bit(nn.Linear):
    """A 4-bit layer by its dtypes: it computes in that of its weight and gives back its input's.

    Source: bitsandbytes/nn/modules.py, `Linear4bit.forward`. What it unpacks for a product is not held here.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Project; autocast has no say, as over any function of bitsandbytes' own."""
        with torch.autocast(hidden.device.type, enabled=False):
            output = F.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        return output.to(hidden.dtype)


class Linear8bit(nn.Linear):
    """An 8-bit layer of bitsandbytes: as the 4-bit one, and it keeps its input for the backward pass.

    Source: bitsandbytes/autograd/_functions.py, `MatMul8bitLt`.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Project."""
        return _Product8bit.apply(hidden, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]


class _Product8bit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(weight.dtype), weight, bias).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        hidden, weight = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            return (grad.to(weight.dtype) @ weight).to(hidden.dtype), None, None


LINEAR: dict[str, type[nn.Linear]] = {"nf4": Linear4bit, "int8": Linear8bit}
"""By `base.quantisation`; torchao's layers stay torch's own and follow autocast."""


def quantise(module: nn.Module, kind: str | None) -> None:
    """Let a module's linear layers keep and give what quantised ones would; weights keep their size."""
    if kind in LINEAR:
        for part in module.modules():
            if type(part) is nn.Linear:
                part.__class__ = LINEAR[kind]

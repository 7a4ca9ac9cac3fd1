"""How torch runs the current forward: compiled, traced, transformed, checkpointed, or as it is written."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def traced() -> bool:
    """Return whether the forward is being turned into a graph, or a transform of torch runs it.

    Nothing may then depend on the numbers: under torch.jit.trace, make_fx, fake tensors, torch.func, and
    forward-mode gradients, which the kernels do not have.
    """
    return torch.compiler.is_compiling() or transformed()


def graphed() -> bool:
    """Return whether the forward is being compiled into a graph that may have operators of our own."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def transformed() -> bool:
    """Return whether a transform of torch or forward-mode gradients are at work, or there are no numbers."""
    if torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0:
        return True
    return torch._C._get_tracing_state() is not None or without_numbers()


def without_numbers() -> bool:
    """Return whether tensors are fake or recorded, so that their numbers cannot be read."""
    if not torch._C._len_torch_dispatch_stack():
        return False
    kinds = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)
    return any(torch._C._get_dispatch_mode(kind) is not None for kind in kinds)


def may_need_gradients() -> bool:
    """Return whether gradients of the current forward may be asked for.

    Reentrant checkpointing runs a forward without gradients first and with gradients in backward; both must
    compute alike, so the first counts too. It runs inside an autograd function, which a compiled forward
    cannot be asked.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    return inside_autograd_function()


def inside_autograd_function() -> bool:
    """Return whether the forward of an autograd function runs: there, forward-mode gradients are off too.

    Neither a plain torch.no_grad() nor inference mode does that.
    """
    return not torch.is_inference_mode_enabled() and not torch._C._is_fwd_grad_enabled()


def under_checkpointing() -> bool:
    """Return whether backward may run the current forward again.

    Checkpointing without reentrance packs what autograd saves; with it, the forward runs inside an autograd
    function. Neither holds under a plain torch.no_grad().
    """
    if torch.is_grad_enabled():
        hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
        return hooks is None or hooks(True) is not None
    return inside_autograd_function()


def recomputing() -> bool:
    """Return whether backward runs the current forward again, as gradient checkpointing does."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1

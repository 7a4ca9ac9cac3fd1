"""Keeps the frozen encoders on the host while the transformer runs, and on the device while they encode.

An encoder is copied to the device at its first call and dropped at the transformer's next one, since frozen
weights need no copy back. Whoever encodes everything before the first forward pass pays for one copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import cpu_offload
from diffusers.utils.torch_utils import get_module_execution_device
from torch import nn

_COMPUTES_ON = "_compute_device"
"""Attribute of an offloaded module: where it computes, which its weights on the host do not say."""


class OffloadedPart:
    """A frozen module with its weights on the host, and on the device between its first call and `release`.

    Args:
        part: The module; its `forward` must be what is called.
        device: Where it computes. On a CPU nothing is copied.
    """

    def __init__(self, part: nn.Module, device: torch.device) -> None:
        """Take the weights to the host; see the class."""
        part.to("cpu")
        self._device, self._is_there = device, False
        self._weights = [*part.parameters(), *part.buffers()]
        if device.type == "cuda":
            for weight in self._weights:
                weight.data = weight.data.pin_memory()  # else every copy would go through a second buffer
        self.on_host = [weight.data for weight in self._weights]
        part.register_forward_pre_hook(self._before_call)

    def _before_call(self, *call: Any) -> None:
        if not self._is_there:
            self.show([kept.to(self._device, non_blocking=True) for kept in self.on_host])
            self._is_there = True

    def release(self) -> None:
        """Drop what is on the device; the weights on the host are as they were."""
        if self._is_there:
            self.show(self.on_host)
            self._is_there = False

    def show(self, values: Sequence[torch.Tensor]) -> None:
        """Let the module compute with these values of its weights."""
        for weight, value in zip(self._weights, values, strict=True):
            weight.data = value


def offload(encoders: Sequence[nn.Module], transformer: nn.Module, device: torch.device) -> None:
    """Keep encoders on the host, but for the time from their first call to the transformer's next one.

    Args:
        encoders: Frozen, called through their parts' `forward`.
        transformer: Before each of its calls, encoders leave the device.
        device: Where all of them compute.
    """
    parts = [OffloadedPart(part, device) for encoder in encoders for part in _called_parts(encoder)]
    for encoder in encoders:
        setattr(encoder, _COMPUTES_ON, device)
    for weight in (each for encoder in encoders for each in _own_weights(encoder)):
        weight.data = weight.data.to(device)

    def before_transformer(*call: Any) -> None:
        for part in parts:
            part.release()

    transformer.register_forward_pre_hook(before_transformer)


def offload_sequentially(encoder: nn.Module, device: torch.device) -> None:
    """Keep an encoder on the host; each of its layers comes to the device whenever it runs.

    Every call costs a copy of all weights. On a CPU it works and saves nothing.
    """
    # Weights without a storage of their own, as the anchor of the weightless VAE, have no layer to come with.
    if next(encoder.children(), None) is None:
        encoder.to(device)
        return
    cpu_offload(encoder.to("cpu"), execution_device=device)


def compute_device(module: nn.Module) -> torch.device:
    """Tell where a module computes, and its inputs must be, also while its weights wait elsewhere."""
    here: torch.device | None = getattr(module, _COMPUTES_ON, None)
    return get_module_execution_device(module) if here is None else here


def _called_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The largest parts of a module that are called themselves: lists of modules are not."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _called_parts(child)
        else:
            yield child


def _own_weights(module: nn.Module) -> Iterator[torch.Tensor]:
    """What a module holds beside its parts."""
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)

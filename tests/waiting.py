"""What would make Python wait for a device, found on the meta device, where the host is another device."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
COPIES = {aten._to_copy.default: 0, aten.copy_.default: 1}
"""Copies, with the place of what is copied among their arguments."""


class Waits(TorchDispatchMode):
    """Notes copies between the host and the device. Reading a number on the meta device is an error of torch.

    Attributes:
        found: Where each was asked for, as "file: function".
    """

    def __init__(self, allowed: tuple[str, ...] = ()) -> None:
        """Start with none.

        Args:
            allowed: Names of functions that may copy, since they do not wait.
        """
        super().__init__()
        self.allowed = allowed
        self.found: list[str] = []
        self._made = Made(self.note)

    def __enter__(self) -> Any:
        self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._made.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in COPIES:
            source = args[COPIES[function]]
            target = output if isinstance(output, Tensor) else args[0]
            # A plain number that becomes a tensor is written by the kernel that makes it.
            if source.device != target.device and not (source.is_cpu and source.dim() == 0):
                self.note()
        return output

    def note(self) -> None:
        """Note who asked, unless that is allowed."""
        stack = traceback.extract_stack()
        if not any(frame.name in self.allowed for frame in stack):
            mine = [frame for frame in stack if "/prw/" in frame.filename or "/recipes/" in frame.filename]
            frame = (mine or stack)[-1]
            self.found.append(f"{frame.filename.rpartition('/')[2]}: {frame.name}")


class Made(TorchFunctionMode):
    """Notes tensors that are made on a device of numbers of the host."""

    def __init__(self, note: Callable[[], None]) -> None:
        """Say who is told."""
        super().__init__()
        self._note = note

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor) and not output.is_cpu:
            self._note()
        return output

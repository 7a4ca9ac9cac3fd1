"""Compiles, without a GPU, those kernels that a call on a GPU would launch, and reads what they need."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from prw.kernels import triton as backend
from prw.kernels.triton import blocks, code, planning, products, sorting

KERNELS = {
    planning: {"count_kernel": sorting.count_kernel, "place_kernel": sorting.place_kernel},
    products: {
        "shrink_kernel": code.shrink_kernel,
        "expand_kernel": code.expand_kernel,
        "sum_kernel": code.sum_kernel,
    },
}


@dataclass(frozen=True)
class Launch:
    """One kernel with the arguments of one launch."""

    kernel: Any
    arguments: dict[str, Any]

    def compiled(self, capability: int) -> Any:
        """Compile what Triton's launcher would for these arguments on a device of that compute capability."""
        target = GPUTarget("cuda", capability, 32)
        device = make_backend(target)
        bind = create_function_from_signature(self.kernel.signature, self.kernel.params, device)
        bound, specialised, options = bind(**self.arguments)
        options, signature, constants, attributes = self.kernel._pack_args(
            device, options, bound, specialised, options
        )
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=target, options=options.__dict__)


class Recorder:
    """Stands in for a kernel and keeps its launches."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: Any) -> Any:
        def launch(*positional: Any, **named: Any) -> None:
            names = [parameter.name for parameter in self.kernel.params]
            self.launches.append(Launch(self.kernel, dict(zip(names, positional, strict=False)) | named))

        return launch


@contextmanager
def recorded(capability: int) -> Iterator[list[Launch]]:
    """Make the backend believe in a device of that major compute capability, and record launches."""
    launches: list[Launch] = []
    with (
        mock.patch.object(planning, "check_device"),
        mock.patch.object(products, "check_device"),
        mock.patch.object(blocks, "device_of", return_value=(capability, 132)),
        mock.patch.multiple(planning, **{n: Recorder(k, launches) for n, k in KERNELS[planning].items()}),
        mock.patch.multiple(products, **{n: Recorder(k, launches) for n, k in KERNELS[products].items()}),
    ):
        yield launches


@dataclass(frozen=True)
class Sizes:
    """The size of a step; by default at FLUX's width."""

    rank: int = 16
    tokens: int = 512
    wide: int = 3072
    experts: int = 4
    slots: int = 1
    tokens_per_item: int = 1
    dtype: torch.dtype = torch.bfloat16
    dtype_of_experts: torch.dtype | None = None


def launches_of_a_step(capability: int, sizes: Sizes) -> dict[str, Launch]:
    """Record forward and backward of K and V: one launch of each kind, by its use."""
    of_experts = sizes.dtype_of_experts or sizes.dtype

    def zeros(*shape: int, dtype: torch.dtype = sizes.dtype) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype)

    ids = torch.zeros(sizes.tokens // sizes.tokens_per_item, sizes.slots, dtype=torch.int64)
    downs = [[zeros(sizes.rank, sizes.wide, dtype=of_experts) for _ in range(sizes.experts)] for _ in "kv"]
    ups = [zeros(sizes.wide, sizes.rank, dtype=of_experts).mT for _ in range(sizes.experts)]
    hidden = zeros(sizes.tokens, sizes.wide)
    named: dict[str, Launch] = {}

    def keep(launches: list[Launch], use: str) -> None:
        for launch in launches:
            slot = f" of slot {launch.arguments['slot']}" if launch.arguments.get("slot") else ""
            named[launch.kernel.__name__.removesuffix("_kernel") + use + slot] = launch
        launches.clear()

    with recorded(capability) as launches:
        decided = backend.plan(ids, sizes.experts, sizes.tokens_per_item)
        keep(launches, "")
        lows = backend.shrink(decided, hidden, downs)
        keep(launches, " hidden by A")
        backend.expand(decided, lows[:1], [ups])
        keep(launches, " by B")
        backend.shrink(decided, hidden, [ups])
        keep(launches, " gradient by B")
        backend.expand(decided, lows, downs)
        keep(launches, " by A")
    named.pop("sum gradient by B", None)  # the same as the other one
    return named


@dataclass(frozen=True)
class Needs:
    """What a compiled kernel takes of a processor."""

    registers: int
    stack: int
    shared: int
    parameters: int
    ptx: str


def compiled(launch: Launch, capability: int, folder: Path) -> Needs:
    """Compile a launch for a device of that compute capability (80, 90) and read the machine code's needs."""
    made = launch.compiled(capability)
    file = folder / "kernel.cubin"
    file.write_bytes(made.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = ("REG", "STACK", "SHARED", r"CONSTANT\[0\]")
    registers, stack, static, constant = (int(re.search(f"{word}:(\\d+)", said)[1]) for word in words)
    return Needs(registers, stack, made.metadata.shared + static, constant, made.asm["ptx"])

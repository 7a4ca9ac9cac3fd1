"""Compiles, without a GPU, exactly those kernels that a call on a GPU would launch, and reads what they need."""

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
from triton.compiler import ASTSource

from prw.kernels import triton as backend
from prw.kernels.triton import blocks, code, planning, products, sorting

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
TYPES |= {torch.int64: "*i64", torch.int32: "*i32"}
OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion"}
KERNELS = {
    planning: {"count_kernel": sorting.count_kernel, "place_kernel": sorting.place_kernel},
    products: {
        "shrink_kernel": code.shrink_kernel,
        "expand_kernel": code.expand_kernel,
        "sum_kernel": code.sum_kernel,
    },
}
TOKENS, WIDE, EXPERTS = 512, 3072, 4


@dataclass(frozen=True)
class Launch:
    """One kernel with the arguments of one launch."""

    kernel: Any
    arguments: dict[str, Any]

    def source(self) -> ASTSource:
        """Say what Triton would compile for these arguments."""
        signature, constants, attributes = {}, {}, {}
        for at, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr:
                signature[parameter.name], constants[at,] = "constexpr", value
            elif isinstance(value, tuple):
                kinds = [specialised(part, (at, k), constants, attributes) for k, part in enumerate(value)]
                signature[parameter.name] = tuple(kinds)
            else:
                signature[parameter.name] = specialised(value, (at,), constants, attributes)
        return ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=attributes)

    def options(self) -> dict[str, Any]:
        """Give the launch's options to the compiler."""
        return {name: value for name, value in self.arguments.items() if name in OPTIONS}


def specialised(value: Any, path: tuple[int, ...], constants: dict[Any, Any], attributes: dict[Any, Any]) -> str:
    """Type an argument as Triton's launcher does: ones are constants, multiples of 16 are known to be."""
    if isinstance(value, torch.Tensor):
        kind, number = TYPES[value.dtype], value.data_ptr()
    else:
        kind, number = "i32" if -(2**31) <= value < 2**31 else "i64", value
        if value == 1:
            constants[path] = 1
            return "constexpr"
    if number % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return kind


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
    """Make the backend believe in a device of that major compute capability, and record what it would launch."""
    launches: list[Launch] = []
    with (
        mock.patch.object(planning, "check_device"),
        mock.patch.object(products, "check_device"),
        mock.patch.object(blocks, "device_of", return_value=(capability, 132)),
        mock.patch.multiple(planning, **{n: Recorder(k, launches) for n, k in KERNELS[planning].items()}),
        mock.patch.multiple(products, **{n: Recorder(k, launches) for n, k in KERNELS[products].items()}),
    ):
        yield launches


def launches_of_a_step(capability: int, dtype: torch.dtype, rank: int) -> dict[str, Launch]:
    """Record forward and backward of K and V at FLUX's width: each distinct launch by what it is for."""
    draw = torch.zeros
    ids = torch.zeros(TOKENS, 1, dtype=torch.int64)
    downs = [[draw(rank, WIDE, dtype=dtype) for _ in range(EXPERTS)] for _ in "kv"]
    ups = [[draw(WIDE, rank, dtype=dtype) for _ in range(EXPERTS)] for _ in "kv"]
    hidden, bias = draw(TOKENS, WIDE, dtype=dtype), draw(WIDE, dtype=dtype)
    with recorded(capability) as launches:
        decided = backend.plan(ids, EXPERTS, 1)
        lows = backend.shrink(decided, hidden, downs)
        backend.expand(decided, lows[:1], [[up.mT for up in ups[0]]], bias, hidden)
        backend.shrink(decided, hidden, [[up.mT for up in ups[0]]])
        backend.expand(decided, lows, downs, None, hidden)
    names = ["count", "place", "shrink x by A", "sum", "sum 2", "expand by B", "shrink grad by B", "sum 3"]
    named = dict(zip([*names, "expand by A"], launches, strict=True))
    return {name: launch for name, launch in named.items() if name not in ("sum 2", "sum 3")}


@dataclass(frozen=True)
class Needs:
    """What a compiled kernel takes of a processor."""

    registers: int
    stack: int
    shared: int
    ptx: str


def compiled(launch: Launch, capability: int, folder: Path) -> Needs:
    """Compile a launch for a device of that compute capability (80, 90) and read the machine code's needs."""
    made = triton.compile(launch.source(), target=GPUTarget("cuda", capability, 32), options=launch.options())
    file = folder / "kernel.cubin"
    file.write_bytes(made.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, static = (int(re.search(f"{word}:(\\d+)", said)[1]) for word in ("REG", "STACK", "SHARED"))
    return Needs(registers, stack, made.metadata.shared + static, made.asm["ptx"])

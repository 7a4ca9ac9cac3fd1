"""Every kernel compiles for A100 and H100 as it would be launched there, and spills nothing."""

import re
import sys

import pytest
import torch

if sys.platform != "linux":
    pytest.skip("Triton is for Linux", allow_module_level=True)

from tests.prw.kernels.triton.ahead_of_time import Sizes, compiled, launches_of_a_step

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # per block, CUDA programming guide, table of compute capabilities
VECTOR = "cp.async.cg.shared.global"  # 16 bytes from global to shared memory, past the registers


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))


@pytest.mark.parametrize("rank", [16, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_fit_the_device_and_spill_nothing(capability, dtype, rank, tmp_path, record_property):
    for name, launch in launches_of_a_step(capability // 10, Sizes(rank, dtype=dtype)).items():
        needs = compiled(launch, capability, tmp_path)
        record_property(name, f"{needs.registers} registers, {needs.shared} bytes of shared memory")
        assert needs.stack == 0, f"{name} spills {needs.stack} bytes per thread"
        assert needs.registers <= 255
        assert needs.shared <= SHARED[capability], name
        assert not re.search(r"\b(atom|red)\.", needs.ptx), f"{name} adds in no fixed order"
        if dtype == torch.bfloat16 and name.startswith(("shrink", "expand")):
            assert VECTOR in needs.ptx, f"{name} reads its matrices by single numbers"
            assert ("wgmma" if capability == 90 else "mma.sync") in needs.ptx, (
                f"{name} misses the tensor cores"
            )


# What is 1 becomes a constant of the kernel, and what is odd cannot be read by vectors.
AWKWARD = {
    "odd": Sizes(rank=5, wide=515, slots=2),
    "long items": Sizes(rank=200, wide=515, tokens_per_item=64, slots=2),
    "ones": Sizes(rank=1, tokens=1, wide=1, experts=1),
    "many experts": Sizes(rank=16, tokens=64, wide=256, experts=64),
    "autocast": Sizes(rank=64, dtype=torch.float16, dtype_of_experts=torch.float32),
}


@pytest.mark.parametrize("sizes", AWKWARD.values(), ids=AWKWARD)
def test_awkward_sizes_compile_too(sizes, tmp_path):
    for name, launch in launches_of_a_step(9, sizes).items():
        needs = compiled(launch, 90, tmp_path)
        assert needs.shared <= SHARED[90], name
        assert needs.parameters <= 4096, name
        assert needs.stack == 0 or sizes.wide % 16, f"{name} spills {needs.stack} bytes per thread"

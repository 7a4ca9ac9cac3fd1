"""Every kernel on a CUDA device: right, repeatable, without waits, recordable; skipped where there is none.

The checks are those that `python -m benchmarks.gpu` makes before it times anything; the same functions run on
the CPU in tests/benchmarks/gpu, so what is skipped here is the device and not the code.
"""

from collections.abc import Iterator

import pytest
import torch

from benchmarks.gpu.cases import KERNELS, SIZES, large_check, small_check
from benchmarks.gpu.checks import CHECKS, Bench, NotMadeError
from benchmarks.gpu.cuda import Cuda

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """The device, on a stream of its own that is given back."""
    before = torch.cuda.current_stream()
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield Bench(Cuda(), small_check(SIZES["full"]), large_check(SIZES["full"]), inductor=False)
    torch.set_float32_matmul_precision(precision)
    torch.cuda.set_stream(before)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_is_right_on_the_device(bench: Bench, kernel: str, check: str) -> None:
    try:
        wrong = CHECKS[check][0](bench, kernel)
    except NotMadeError as why:
        pytest.skip(str(why))
    finally:
        bench.device.still_there(kernel)
    assert not wrong

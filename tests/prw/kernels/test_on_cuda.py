"""Every kernel on a CUDA device: right, repeatable, without waits, recordable; skipped where there is none.

The checks are those that `python -m benchmarks.gpu` makes before it times anything; the same functions run on
the CPU in tests/benchmarks/test_checks.py, so what is skipped here is the device and not the code.
"""

from collections.abc import Iterator

import pytest
import torch

from benchmarks.cases import GPU_KERNELS, check_points
from benchmarks.checks import CHECKS, CheckSetup, NotMadeError
from benchmarks.timing import Cuda

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(scope="module")
def setup() -> Iterator[CheckSetup]:
    """The device, on a stream of its own that is given back."""
    before = torch.cuda.current_stream()
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield CheckSetup(Cuda(), *check_points("full"), inductor=False)
    torch.set_float32_matmul_precision(precision)
    torch.cuda.set_stream(before)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("kernel", GPU_KERNELS)
def test_a_kernel_is_right_on_the_device(setup: CheckSetup, kernel: str, check: str) -> None:
    try:
        wrong = CHECKS[check][0](setup, kernel)
    except NotMadeError as why:
        pytest.skip(str(why))
    finally:
        setup.device.still_there(kernel)
    assert not wrong

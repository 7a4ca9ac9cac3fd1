"""Without Triton, or without CUDA, the backend says what is missing; the rest of prw does not care."""

import sys
from unittest import mock

import pytest
import torch

from prw.errors import ConfigError


def without_the_room() -> dict[str, object]:
    return {name: module for name, module in sys.modules.items() if not name.startswith("prw.kernels.triton")}


def test_a_missing_triton_is_said_with_what_to_install():
    modules = without_the_room() | {"triton": None}
    with (
        mock.patch.dict(sys.modules, modules, clear=True),
        pytest.raises(
            ConfigError, match=r"needs the package triton.*pip install 'prw\[triton\]'.*kernel='auto'"
        ),
    ):
        __import__("prw.kernels.triton")


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_tensors_on_the_cpu_are_refused():
    from prw.kernels import triton as backend

    with pytest.raises(ConfigError, match=r"runs on CUDA devices.*came a tensor on cpu.*kernel='auto'"):
        backend.plan(torch.zeros(3, 1, dtype=torch.int64), 2, 1)

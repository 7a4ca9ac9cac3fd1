"""Without Triton, or without CUDA, the backend says what is missing; the rest of prw does not care."""

import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from prw.errors import ConfigError


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, r"needs the package triton.*pip install 'prw\[triton\]'.*kernel='auto'"),
        (SimpleNamespace(__version__="3.2.0"), r"needs triton 3\.3 or newer.*this is 3\.2\.0.*kernel='auto'"),
    ],
)
def test_a_missing_or_old_triton_is_said_with_what_to_install(found, said):
    others = {
        name: module for name, module in sys.modules.items() if not name.startswith("prw.kernels.triton")
    }
    with (
        mock.patch.dict(sys.modules, others | {"triton": found}, clear=True),
        pytest.raises(ConfigError, match=said),
    ):
        __import__("prw.kernels.triton")


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_tensors_on_the_cpu_are_refused():
    from prw.kernels import triton as backend

    with pytest.raises(ConfigError, match=r"runs on CUDA devices.*a tensor on cpu.*kernel='auto'"):
        backend.plan(torch.zeros(3, 1, dtype=torch.int64), 2, 1)

"""The dispatch plan: which backend a kernel's name means on a device."""

import pytest
import torch

import prw
from prw.kernels import cpu, dense, grouped, make_plan
from prw.kernels.dispatch_plan import backend_of

CUDA = torch.device("cuda")


def test_grouped_on_a_cpu_is_not_the_way_of_cuda():
    assert backend_of("grouped", torch.device("cpu")) is cpu
    assert backend_of("grouped", CUDA) is grouped


def test_the_reference_has_no_backend():
    with pytest.raises(prw.ConfigError, match="no backend"):
        backend_of("reference", torch.device("cpu"))


def test_a_plan_computes_by_its_backend():
    ids = torch.tensor([[0], [1]])
    assert make_plan("dense", ids, 2).backend is dense
    assert make_plan("grouped", ids, 2).backend is cpu

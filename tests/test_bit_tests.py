"""The tests that compare bits are found by what they call, and other CPUs can be imitated."""

import pytest
import torch

from tests.bit_tests import functions_that_compare_bits
from tests.other_rounding import imitate

FILE = """
import torch
from tests.prw.matrix.checks import CHECKS, wake


def same(one, other):
    return all(map(torch.equal, one, other)) and torch.equal(one[0], other[0])


BY_NAME = {"same": same}


@pytest.fixture
def pool_of(run):
    return (run / "adapter_model.safetensors").read_bytes()


def test_itself(): assert torch.equal(1, 2)
def test_through_a_function(): assert same(1, 2)
def test_through_a_table(): assert BY_NAME["same"](1, 2)
def test_through_an_import(): CHECKS["identity"]()
def test_through_a_fixture(pool_of): assert pool_of
def test_without_tolerance(): torch.testing.assert_close(1, 2, rtol=0, atol=0)
def test_close(): assert torch.allclose(1, 2) and wake
def test_with_tolerance(): torch.testing.assert_close(1, 2, rtol=0, atol=1e-6)


class TestInAClass:
    def test_of_a_class(self): assert same(1, 2)
"""


def test_whoever_compares_bits_is_found(tmp_path):
    path = tmp_path / "test_some.py"
    path.write_text(FILE)
    assert {name for name in functions_that_compare_bits(path) if name.startswith("test_")} == {
        "test_itself",
        "test_through_a_function",
        "test_through_a_table",
        "test_through_an_import",
        "test_through_a_fixture",
        "test_without_tolerance",
        "test_of_a_class",
    }


def test_a_test_that_compares_bits_has_the_mark(request):
    assert request.node.get_closest_marker("bits") is None
    assert "test_the_imitated_cpu_rounds_strided_inputs_of_frozen_weights_otherwise" in (
        functions_that_compare_bits(request.path)
    )


@pytest.mark.usefixtures("other_rounding")
def test_the_imitated_cpu_rounds_strided_inputs_of_frozen_weights_otherwise(request):
    assert request.node.get_closest_marker("bits")
    layer, hidden = torch.nn.Linear(4, 4), torch.randn(3, 2, 4).transpose(0, 1)
    trainable = layer(hidden)
    assert torch.equal(trainable, layer(hidden.contiguous()))
    frozen = layer.requires_grad_(False)(hidden)
    assert not torch.equal(frozen, trainable) and torch.allclose(frozen, trainable, atol=1e-5)
    assert torch.equal(layer(hidden.contiguous()), trainable)


def test_the_imitated_cpu_rounds_products_with_unaligned_weights_otherwise(monkeypatch):
    monkeypatch.setattr(torch.nn.Linear, "forward", torch.nn.Linear.forward)  # put back afterwards
    layer, hidden = torch.nn.Linear(4, 4, bias=False), torch.randn(3, 4)
    aligned = layer(hidden)
    imitate("unaligned_weights")
    assert torch.equal(layer(hidden), aligned)
    layer.weight = torch.nn.Parameter(torch.cat([torch.zeros(1), layer.weight.flatten()])[1:].view(4, 4))
    assert not torch.equal(layer(hidden), aligned) and torch.allclose(layer(hidden), aligned, atol=1e-5)

"""A step waits for the device once, at its end: numbers are read together, after the backward pass."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recipes.cologen.training.step import StepLosses, batch_loss, train_step
from tests.recipes.cologen.training.test_step import make_trained, some_batches, stage

__all__ = ["make_trained"]


class Reads(TorchDispatchMode):
    """Counts the scalars that Python reads out of tensors, each of which waits for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize("count", [1, 3])
def test_a_step_reads_nothing_before_its_numbers_are_read_together(make_trained, count):
    trained = make_trained("pool.kernel=dense")
    optimizer = torch.optim.SGD(trained.weave.trainable_parameters(), lr=1e-3)  # AdamW reads counters
    with Reads() as reads:
        measured = train_step(trained, stage(trained), 1, optimizer, some_batches(count, 2))
    assert reads.count == 4 * count + 1  # the one list at the end, which a CPU makes number by number
    assert all(type(value) is float and math.isfinite(value) for value in measured)


def test_what_is_counted_is_a_read():
    with Reads() as reads:
        torch.ones(1).item(), float(torch.ones(1)), bool(torch.ones(1))
    assert reads.count == 3


def test_one_transfer_brings_all_numbers_of_a_step(make_trained, monkeypatch):
    trained, seen = make_trained("pool.kernel=dense"), []
    optimizer = torch.optim.SGD(trained.weave.trainable_parameters(), lr=1e-3)
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: seen.append(len(self)) or original(self))
    train_step(trained, stage(trained), 1, optimizer, some_batches(3, 2))
    assert seen == [3 * 4 + 1]


def test_what_a_batch_measured_stays_on_the_device_and_carries_no_graph(make_trained):
    trained = make_trained("pool.noise=false")
    batch = some_batches()[0]
    _, measured = batch_loss(trained, stage(trained), batch)
    assert measured.shape == (4,) and measured.dtype is torch.float32 and not measured.requires_grad
    assert 0 < StepLosses(*measured.tolist()).gate <= 1
    _, replayed = batch_loss(trained, stage(trained), batch._replace(replayed=(True,) * 4))
    assert math.isnan(replayed[2]) and replayed[1] == 0

"""Data-parallel training: every trainable parameter takes part in every step, noise drawn or not."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import prw


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_draws_no_noise_trains_under_ddp(make_plain, one_rank, training):
    model = make_plain().train(training)
    weave = prw.inject(model, rank=2)
    for name in ("a", "b"):  # one by one, so that the first is a veteran
        weave.add_expert(name)
    wrapped = DistributedDataParallel(model)
    for _ in range(3):
        wrapped(torch.randn(2, 5, 8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in weave.trainable_parameters())

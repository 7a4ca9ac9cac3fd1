"""Forward, losses and backward are queued without waiting for the device: nothing is read, nothing copied."""

import pytest
import torch

import prw
from tests.prw.conftest import Plain, flux
from tests.waiting import Waits

KERNELS = ["dense", "grouped"]


def on_meta(kernel, dtype=torch.bfloat16, **settings):
    """A FLUX with a pool on the meta device, in the 16 bits that grouped_mm wants there."""
    host = flux()
    host.model.to("meta")
    weave = prw.inject(host.model, rank=8, experts=["a", "b", "c"], kernel=kernel, **settings)
    host.model.to(dtype).train()
    host.inputs = {
        name: value.to("meta", dtype if value.is_floating_point() else None)
        for name, value in host.inputs.items()
    }
    return host, weave


def losses(routing, mask=None):
    return (
        prw.veteran_loss(routing, rho=0.5, alpha=0.5, mask=mask)
        + prw.load_balance_loss(routing, mask=mask)
        + prw.router_z_loss(routing, mask=mask)
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("settings", [{}, {"top_k": 2}, {"gate": "unit"}, {"router_norm": True}])
def test_a_training_step_waits_for_nothing(kernel, granularity, settings):
    host, weave = on_meta(kernel, granularity=granularity, **settings)
    with Waits() as waits:
        with weave.record() as routing:
            output = host()
        routing.tally()
        (output.float().square().mean() + losses(routing)).backward()
    assert waits.found == []
    assert all(parameter.grad is not None for parameter in weave.trainable_parameters())


@pytest.mark.parametrize("kernel", KERNELS)
def test_neither_does_a_checkpointed_one(kernel):
    host, weave = on_meta(kernel)
    host.model.enable_gradient_checkpointing()
    with Waits() as waits:
        with weave.record() as routing:
            output = host()
        (output.float().square().mean() + losses(routing)).backward()
    assert waits.found == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_neither_does_inference(kernel):
    host, weave = on_meta(kernel)
    host.model.eval()
    with torch.no_grad(), Waits() as waits, weave.as_of("b"):
        host()
    assert waits.found == []


@pytest.mark.parametrize("where", ["route_only", "loss"])
def test_a_mask_of_the_host_is_copied_once_and_not_for_every_site(where):
    model, hidden = Plain(blocks=5).to("meta"), torch.randn(2, 4, 8, device="meta")
    weave = prw.inject(model, rank=2, experts=["a", "b"], kernel="dense")
    mask = torch.tensor([[True, True, False, True], [True, False, True, True]])
    with Waits() as waits, weave.record() as routing:
        if where == "route_only":
            with weave.route_only(mask):
                model(hidden)
                model(hidden)
        else:
            model(hidden)
            prw.veteran_loss(routing, rho=0.5, alpha=0.5, mask=mask)
    assert len(waits.found) == 1


def test_a_mask_that_is_changed_inside_its_block_is_copied_again():
    model, hidden = Plain(blocks=3).to("meta"), torch.randn(1, 4, 8, device="meta")
    weave = prw.inject(model, rank=2, experts=["a", "b"], kernel="dense")
    mask = torch.tensor([[True, True, False, True]])
    with Waits() as waits, weave.route_only(mask):
        model(hidden)
        mask[0, 0] = False
        model(hidden)
    assert len(waits.found) == 2


def test_what_is_counted_is_a_copy_and_reading_is_an_error():
    value = torch.ones(3, device="meta")
    with Waits() as waits:
        torch.ones(3).to("meta")
        torch.tensor([1, 2], device="meta")
        value.copy_(torch.ones(3))
        value + torch.arange(3, device="meta")
    assert len(waits.found) == 3
    for read in (lambda: value[0].item(), lambda: value.tolist(), lambda: bool(value.any()), value.nonzero):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()

"""torch.compile of whole host models: one graph, no breaks, and none anew when routing or weights change."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import prw


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def turn_round(model):
    """Negate every router, so that of two experts each item gets the other one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".prw_gate" in name:
                parameter.neg_()


def fresh_inputs(host):
    """New inputs of the same shapes, so that items go elsewhere."""
    for name, value in host.inputs.items():
        new = torch.randint_like(value, 40) if value.dtype == torch.long else torch.randn_like(value)
        host.inputs[name] = new


def step(host, weave, model):
    """A loss and the gradients of what trains, and where everything went."""
    weave.model.zero_grad()
    torch.manual_seed(3)
    with weave.record() as routing:
        loss = host.read(model(**host.inputs)).square().mean()
        loss = loss + prw.veteran_loss(routing, rho=0.8, alpha=0.5)
    loss.backward()
    ids = torch.cat([d.expert_ids.flatten() for of_site in routing.decisions.values() for d in of_site])
    return loss.detach(), [p.grad.clone() for p in weave.trainable_parameters()], ids


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("name", ["flux", "bert"])
def test_one_graph_forward_and_backward_whatever_the_routing(make_host, wake, name, granularity):
    host = make_host(name)
    host.model.eval()  # noise is drawn by another generator once compiled
    weave = prw.inject(host.model, rank=2, experts=["a", "b"], granularity=granularity)
    wake(weave)
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(host.model, backend=backend, fullgraph=True)  # a break is an error
    for _ in range(3):
        loss, gradients, ids = step(host, weave, host.model)
        again, same, other = step(host, weave, compiled)
        assert torch.allclose(loss, again, atol=1e-5)
        assert torch.equal(ids, other)
        assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(gradients, same, strict=True))
        assert any(gradient.any() for gradient in same)
        turn_round(host.model)
        assert not torch.equal(step(host, weave, compiled)[2], ids)
        fresh_inputs(host)
    assert backend.frame_count == 1, "the model was compiled again"


def test_training_with_noise_is_one_graph_too(make_plain, wake):
    model = make_plain().train()
    weave = prw.inject(model, rank=2, experts=["a", "b"])
    wake(weave)
    backend = CompileCounterWithBackend("aot_eager")
    model.compile(backend=backend, fullgraph=True)  # the other way to compile: in place
    hidden = torch.randn(2, 5, 8)

    def drawn(seed):
        torch.manual_seed(seed)
        output = model(hidden)
        output.sum().backward()
        return output.detach()

    assert torch.equal(drawn(1), drawn(1)), "the same seed draws the same noise"
    assert not torch.equal(drawn(1), drawn(2)), "and another seed another"
    assert backend.frame_count == 1


def test_another_mask_does_not_compile_again_and_growth_compiles_once(make_plain, wake):
    model, hidden = make_plain().eval(), torch.randn(2, 7, 8)
    weave = prw.inject(model, rank=2, experts=["a", "b"])
    wake(weave)
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for _ in range(3):
        mask = torch.rand(2, 7) > 0.5
        with weave.route_only(mask):
            assert torch.allclose(compiled(hidden), model(hidden), atol=1e-6)
    assert backend.frame_count == 1
    weave.add_expert("c")
    for _ in range(2):
        with weave.route_only(mask):
            assert torch.allclose(compiled(hidden), model(hidden), atol=1e-6)
    assert backend.frame_count == 2


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"
)  # torch's own
@pytest.mark.parametrize("name", ["flux", "llama"])
def test_inductor_computes_the_same(make_host, wake, name):
    host = make_host(name)
    host.model.eval()
    weave = prw.inject(host.model, rank=2, experts=["a", "b"])
    wake(weave)
    compiled = torch.compile(host.model, fullgraph=True)
    loss, gradients, ids = step(host, weave, host.model)
    again, same, other = step(host, weave, compiled)
    assert torch.allclose(loss, again, atol=1e-4)
    assert torch.equal(ids, other)
    assert all(torch.allclose(x, y, atol=1e-4) for x, y in zip(gradients, same, strict=True))

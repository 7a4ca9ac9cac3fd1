"""Autocast, inference mode and 16-bit bases: experts and gates keep float32, and the output its dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prw
from tests.prw.conftest import Plain


def experts_of(model):
    return {name: weight for name, weight in model.named_parameters() if ".prw_" in name}


# torch notes that its fused RMS norm takes no two dtypes.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize("name", ["llama", "flux", "bert"])
def test_autocast_keeps_experts_routers_and_gradients_in_float32(make_host, wake, name):
    host = make_host(name)
    host.model.eval()
    weave = prw.inject(host.model, rank=2, experts=["a", "b"])
    wake(weave)
    exact = host()
    with torch.autocast("cpu", dtype=torch.bfloat16), weave.record() as routing:
        output = host()
        with weave.disabled():
            base = host()
        loss = output.float().square().mean() + prw.veteran_loss(routing, rho=0.8, alpha=0.5)
    loss.backward()
    assert output.dtype == base.dtype
    assert torch.allclose(output.float(), exact, atol=0.1, rtol=0.1)
    assert not torch.equal(output, base)
    decisions = routing.all()
    assert {d.logits.dtype for d in decisions} == {d.weights.dtype for d in decisions} == {torch.float32}
    assert {weight.dtype for weight in experts_of(host.model).values()} == {torch.float32}
    assert {p.grad.dtype for p in weave.trainable_parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["llama", "flux", "vit"])
def test_inference_mode_computes_what_no_grad_does(make_host, wake, name):
    host = make_host(name)
    host.model.eval()
    weave = prw.inject(host.model, rank=2, experts=["a", "b"])
    wake(weave)
    with torch.no_grad():
        expected = host()
    with torch.inference_mode(), weave.record() as routing:
        assert torch.equal(host(), expected)
    assert [len(decisions) for decisions in routing.decisions.values()] == [1] * host.sites
    with torch.inference_mode(), weave.as_of("a"):
        assert not torch.equal(host(), expected)
    host().sum().backward()  # and training goes on afterwards
    assert all(parameter.grad is not None for parameter in weave.trainable_parameters())


DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


@given(DTYPES, st.integers(1, 3), st.integers(1, 4), st.sampled_from(["token", "sample"]))
def test_experts_are_float32_whatever_16_bit_dtype_the_base_has(dtype, count, rank, granularity):
    model = Plain().to(dtype).eval()
    hidden = torch.randn(2, 5, 8, dtype=dtype)
    before = model(hidden)
    weave = prw.inject(model, rank=rank, granularity=granularity)
    for index in range(count):
        weave.add_expert(f"e{index}")
    assert torch.equal(model(hidden), before)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert {weight.dtype for weight in experts_of(model).values()} == {wanted}
    output = model(hidden)
    assert output.dtype == dtype
    output.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == wanted for p in weave.trainable_parameters())


def test_experts_follow_a_cast_that_was_asked_for_and_so_do_later_ones(make_plain, wake):
    model = make_plain().eval()
    weave = prw.inject(model, rank=2, experts=["a"])
    wake(weave)
    model.to(torch.bfloat16)
    weave.add_expert("b")
    hidden = torch.randn(2, 5, 8, dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    with weave.record() as routing:
        model(hidden).sum().backward()
    assert routing.all()[0].logits.dtype == torch.float32, "the router computes in float32 still"
    assert all(parameter.grad is not None for parameter in weave.trainable_parameters())

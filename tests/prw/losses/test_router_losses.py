"""Load balance, router z and the masks of all three losses: formulas, gradients, effects, refusals."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prw
from prw.routing import Routing, top_1

veteran = partial(prw.veteran_loss, rho=0.3, alpha=0.5)
LOSSES = {"veteran": veteran, "balance": prw.load_balance_loss, "z": prw.router_z_loss}
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))


def recorded(logits, routed=None):
    """A record with one site per tensor of [batch, items, experts]."""
    routing = Routing(tuple("abcd"[: logits[0].shape[-1]]))
    for site, one in enumerate(logits):
        routing.add(f"site{site}", top_1(one, "prob", routed))
    return routing


@settings(max_examples=30)
@given(SHAPES, st.integers(0, 2**20))
def test_load_balance_is_the_formula_site_by_site(shape, seed):
    torch.manual_seed(seed)
    logits = torch.randn(shape)
    expected = []
    for site in logits.flatten(1, 2):
        probabilities = site.softmax(-1)
        fractions = torch.nn.functional.one_hot(probabilities.argmax(-1), shape[-1]).float().mean(0)
        expected.append(shape[-1] * (fractions * probabilities.mean(0)).sum())
    with torch.no_grad():
        loss = prw.load_balance_loss(recorded(logits), alpha=0.01)
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, 0.01 * torch.stack(expected).mean(), atol=1e-6)


@settings(max_examples=30)
@given(SHAPES, st.integers(0, 2**20))
def test_router_z_is_the_formula(shape, seed):
    torch.manual_seed(seed)
    logits = torch.randn(shape) * 4
    with torch.no_grad():
        loss = prw.router_z_loss(recorded(logits), alpha=0.001)
    assert torch.allclose(loss, 0.001 * torch.logsumexp(logits, -1).square().mean(), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=30)
@given(shape=SHAPES, seed=st.integers(0, 2**20), per=st.sampled_from(["batch", "sample"]))
def test_a_masked_token_has_no_part_in_value_and_gradient(name, shape, seed, per):
    torch.manual_seed(seed)
    mask = torch.rand(shape[1:3]) < 0.6
    loss = partial(LOSSES[name], per=per) if name == "veteran" else LOSSES[name]
    results = []
    for garbage in (0.0, 30.0):
        logits = torch.where(mask.unsqueeze(-1), torch.ones(shape), torch.full(shape, garbage))
        logits = (
            logits * torch.linspace(-1, 1, shape[-1]) + torch.arange(shape[0]).view(-1, 1, 1, 1)
        ).clone()
        logits.requires_grad_()
        value = loss(recorded(logits), mask=mask)
        (gradient,) = torch.autograd.grad(value, logits)
        assert not gradient[:, ~mask].any()
        results.append((value.detach(), gradient))
        routed = loss(recorded(logits.detach().requires_grad_(), routed=mask))
        assert torch.equal(routed.detach(), value.detach()), "masked is as not routed"
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_that_counts_costs_nothing(name):
    logits = torch.randn(2, 2, 3, 2, requires_grad=True)
    value = LOSSES[name](recorded(logits), mask=torch.zeros(2, 3, dtype=torch.bool))
    assert torch.isfinite(value)
    assert name == "veteran" or value.item() == 0.0
    (gradient,) = torch.autograd.grad(value, logits)
    assert not gradient.any()


@pytest.mark.parametrize("name", LOSSES)
def test_what_cannot_train_is_refused(name, make_plain):
    model = make_plain()
    weave = prw.inject(model, rank=2, experts=["a", "b"])
    with weave.record() as routing, torch.no_grad():
        model(torch.randn(2, 4, 8))
    with pytest.raises(prw.RoutingError, match="no gradient"):
        LOSSES[name](routing)
    with torch.no_grad():
        assert torch.isfinite(LOSSES[name](routing))
        for mask, error in ((torch.ones(2, 4), prw.ConfigError), (torch.ones(3, 4).bool(), prw.RoutingError)):
            with pytest.raises(error, match="mask"):
                LOSSES[name](routing, mask=mask)
    with pytest.raises(prw.ConfigError, match="a finite number of at least 0"):
        LOSSES[name](routing, alpha=-1.0)
    with pytest.raises(prw.RoutingError, match="no routing decision"):
        LOSSES[name](Routing(("a",)))


def trained(make_plain, loss):
    """Train all router vectors on one loss; give the record before and after."""
    model = make_plain(blocks=2)
    weave = prw.inject(model, rank=2, experts=["a", "b", "c"], train_veteran_gates=True, noise=False)
    hidden = torch.randn(16, 8, 8) + 1.0
    with torch.no_grad():
        for layer in model.blocks:
            layer.to_k.prw_gate0["default"].weight.fill_(0.5)  # nearly all go to "a"
    optimizer = torch.optim.Adam(weave.trainable_parameters(), lr=0.05)
    records = []
    for _ in range(80):
        with weave.record() as routing:
            model(hidden)
        records.append(routing)
        optimizer.zero_grad()
        loss(routing).backward()
        optimizer.step()
    return records[0], records[-1]


def test_load_balance_evens_out_the_use(make_plain):
    before, after = trained(make_plain, prw.load_balance_loss)
    assert before.usage().max() > 0.8
    assert after.usage().max() < 0.5


def test_router_z_makes_the_log_sum_of_the_logits_small(make_plain):
    before, after = trained(make_plain, prw.router_z_loss)
    assert prw.router_z_loss(after).item() < 0.1 * prw.router_z_loss(before).item()


def test_even_routing_costs_alpha_and_collapse_up_to_n_times_as_much():
    even = torch.eye(3).expand(2, 1, 3, 3) * 50.0
    lost = torch.tensor([50.0, 0.0, 0.0]).expand(2, 1, 3, 3)
    with torch.no_grad():
        assert prw.load_balance_loss(recorded(even), 0.1).item() == pytest.approx(0.1)
        assert prw.load_balance_loss(recorded(lost), 0.1).item() == pytest.approx(0.3)

"""The three losses: formulas, gradients, masks, effects on a router, and refusals."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prw
from prw.routing import Routing, top_1


def trained_share(model, weave, rho, steps=150, **options):
    """Train on the veteran loss alone; give the mean share of the first steps and of the last."""
    torch.manual_seed(5)
    optimizer = torch.optim.AdamW(weave.trainable_parameters(), lr=0.02)
    hidden = torch.randn(8, 16, 8)
    shares = []
    for _ in range(steps):
        optimizer.zero_grad()
        with weave.record() as routing:
            model(hidden)
        prw.veteran_loss(routing, rho=rho, alpha=0.5, **options).backward()
        optimizer.step()
        shares.append(routing.share())
    return sum(shares[:3]) / 3, sum(shares[-30:]) / 30


@pytest.mark.parametrize("share", ["straight-through", "soft"])
@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("rho", [0.8, 0.1])
def test_the_share_reaches_rho_although_b_is_zero(make_plain, granularity, share, rho):
    model = make_plain(blocks=2)
    weave = prw.inject(model, rank=2, granularity=granularity, share=share)
    for name in ("a", "b", "c"):
        weave.add_expert(name)
    assert all(
        not layer.prw_B2["default"].weight.any() for layer in (model.blocks[0].to_k, model.blocks[1].to_v)
    )
    # Soft holds the mean probability, and with noise the hard share follows it loosely.
    near = pytest.approx(rho, abs=0.2 if share == "soft" else 0.1)
    start, end = trained_share(model, weave, rho)
    assert start != near, "the share must not lie near its target before anything has trained"
    assert end == near


def test_the_value_is_alpha_times_the_distance(make_plain):
    model = make_plain()
    weave = prw.inject(model, rank=2, experts=["a", "b"])
    with weave.record() as routing:
        model(torch.randn(4, 6, 8))
    loss = prw.veteran_loss(routing, rho=0.8, alpha=0.5)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(0.5 * abs(routing.share() - 0.8), abs=1e-6)
    per_sample = routing.newest_share(per="sample")
    expected = 0.5 * (per_sample - 0.8).abs().mean()
    assert torch.equal(prw.veteran_loss(routing, rho=0.8, alpha=0.5, per="sample"), expected)


def test_the_first_stage_costs_nothing_and_has_share_one(make_plain):
    model = make_plain()
    weave = prw.inject(model, rank=2, experts=["a"])
    with weave.record() as routing:
        model(torch.randn(4, 6, 8))
    assert routing.share() == 1.0
    loss = prw.veteran_loss(routing, rho=1.0, alpha=0.0)
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_only_the_newest_router_vectors_get_a_gradient(make_plain):
    model = make_plain(blocks=1)
    weave = prw.inject(model, rank=2, experts=["a", "b"])
    with weave.record() as routing:
        model(torch.randn(4, 6, 8))
    prw.veteran_loss(routing, rho=0.8, alpha=0.5).backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {f"blocks.0.to_k.prw_{part}1.default.weight" for part in ("gate", "noise")}


def test_values_out_of_range_are_refused(make_plain):
    model = make_plain()
    weave = prw.inject(model, rank=2, experts=["a"])
    with weave.record() as routing, torch.no_grad():
        model(torch.randn(4, 6, 8))
    with pytest.raises(prw.ConfigError, match="rho is a share"):
        prw.veteran_loss(routing, rho=80, alpha=0.5)
    with pytest.raises(prw.ConfigError, match="alpha weighs a loss"):
        prw.veteran_loss(routing, rho=0.8, alpha=-1)
    with pytest.raises(prw.RoutingError, match="no gradient"):
        prw.veteran_loss(routing, rho=0.8, alpha=0.5)
    with torch.no_grad():
        assert float(prw.veteran_loss(routing, rho=0.8, alpha=0.5)) == pytest.approx(0.1)


def test_the_mean_over_processes_is_that_of_the_whole_batch_per_sample_only():
    logits = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])  # the first process has share one, the second zero

    def loss(of, per):
        routing = Routing(("a", "b"))
        routing.add("site", top_1(of, "prob"))
        with torch.no_grad():
            return float(prw.veteran_loss(routing, rho=0.5, alpha=1.0, per=per))

    for per, whole in (("sample", 0.5), ("batch", 0.0)):
        assert loss(logits, per) == whole
        assert (loss(logits[:1], per) + loss(logits[1:], per)) / 2 == 0.5


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_what_is_masked_altogether_has_no_share_to_hold(per):
    routing = Routing(("a", "b"))
    logits = torch.tensor([[[0.0, 2.0], [0.0, 2.0]], [[2.0, 0.0], [2.0, 0.0]]], requires_grad=True)
    routing.add("site", top_1(logits, "prob"))
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    assert prw.veteran_loss(routing, rho=0.8, alpha=0.5, per=per, mask=nothing).item() == 0.0
    first = torch.tensor([[True, True], [False, False]])
    loss = prw.veteran_loss(routing, rho=0.8, alpha=0.5, per=per, mask=first)
    assert loss.item() == pytest.approx(0.5 * 0.2)


@pytest.mark.parametrize("wrong", [{"per": "token"}, {"share": "hard"}, {"alpha": float("nan")}])
def test_words_and_weights_that_mean_nothing_are_refused(wrong):
    routing = Routing(("a", "b"))
    routing.add("site", top_1(torch.zeros(1, 2, 2, requires_grad=True), "prob"))
    with pytest.raises(prw.ConfigError):
        prw.veteran_loss(routing, **{"rho": 0.8, "alpha": 0.5, **wrong})


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

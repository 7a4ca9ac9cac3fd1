"""The veteran loss: its value, its gradient, and that it brings the share to its target from a cold start."""

import pytest
import torch

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

"""Several experts per item: the likeliest ones, each with its own probability, and what is asked of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prw
from prw.config import PoolSettings
from prw.routing import Routing, decide, newest_indicator, top_1, top_k

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5))


@given(SIZES, st.integers(2, 7), st.sampled_from(["prob", "unit"]))
def test_the_k_likeliest_each_with_its_own_probability(sizes, k, gate):
    logits = torch.randn(*sizes)
    decision = top_k(logits, gate, k=k)
    chosen = min(k, sizes[2])
    assert decision.choices.shape == (*sizes[:2], chosen)
    assert decision.expert_ids.shape == (sizes[:2] if chosen == 1 else (*sizes[:2], chosen))
    assert decision.weights.shape == decision.expert_ids.shape
    ranked = logits.softmax(-1).sort(-1, descending=True)
    assert torch.equal(decision.choices, ranked.indices[..., :chosen])
    weights = decision.weights.reshape(decision.choices.shape)
    assert torch.equal(weights, ranked.values[..., :chosen] if gate == "prob" else torch.ones_like(weights))


@given(SIZES)
def test_k_of_one_keeps_its_shapes_and_bits(sizes):
    logits = torch.randn(*sizes)
    assert all(
        torch.equal(x, y) for x, y in zip(top_1(logits, "prob"), top_k(logits, "prob", k=1), strict=True)
    )
    assert top_k(logits, "prob").expert_ids.shape == sizes[:2]


@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_what_is_not_routed_has_no_expert_and_no_weight(granularity):
    mask = torch.tensor([[True, False, True], [False, False, False]])
    settings = PoolSettings(granularity=granularity, top_k=2)
    decision = decide(torch.randn(2, 3, 8), list(torch.randn(3, 1, 8)), [], settings, mask)
    items = mask if granularity == "token" else mask.any(1, keepdim=True)
    assert torch.equal(decision.routed, items)
    assert torch.equal((decision.choices >= 0).all(-1), items)
    assert torch.equal((decision.weights > 0).all(-1), items)


@given(SIZES, st.integers(1, 5))
def test_share_usage_and_gate_of_several_choices(sizes, k):
    logits = torch.randn(*sizes, requires_grad=True)
    decision = top_k(logits, "prob", k=k)
    routing = Routing(tuple(str(index) for index in range(sizes[2])))
    routing.add("site", decision)
    newest = (decision.choices == sizes[2] - 1).any(-1).float()
    assert routing.share() == pytest.approx(newest.mean().item())
    counts = torch.bincount(decision.choices.flatten(), minlength=sizes[2]).float()
    assert torch.allclose(routing.usage()[0], counts / counts.sum())
    assert routing.gate() == pytest.approx(decision.weights.mean().item(), abs=1e-6)
    per_sample = routing.newest_share(per="sample")
    assert torch.allclose(per_sample, newest.mean(1), atol=1e-6)
    (gradient,) = torch.autograd.grad(newest_indicator(decision, "straight-through").sum(), logits)
    (wanted,) = torch.autograd.grad(logits.softmax(-1)[..., -1].sum(), logits)
    assert torch.allclose(gradient, wanted, atol=1e-6)


def test_top_k_of_all_makes_the_share_one_and_the_loss_says_so():
    routing = Routing(("a", "b"))
    routing.add("site", top_k(torch.randn(2, 3, 2, requires_grad=True), "prob", k=2))
    assert routing.share() == 1.0
    assert prw.veteran_loss(routing, rho=0.25, alpha=2.0).item() == pytest.approx(1.5)


@pytest.mark.parametrize("kernel", ["dense", "reference"])
@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_a_projection_sums_its_experts_by_their_probabilities(make_plain, wake, kernel, granularity):
    base = make_plain(blocks=1).eval()
    weave = prw.inject(base, rank=3, experts=["a", "b", "c"], top_k=2, kernel=kernel, granularity=granularity)
    wake(weave)
    layer, hidden = base.blocks[0].to_v, torch.randn(2, 5, 8)
    with weave.record() as routing:
        got = layer(hidden)
    (decision,) = routing.decisions["blocks.0"]
    wanted = layer.base_layer(hidden)
    for expert in range(3):
        down, up = (getattr(layer, f"prw_{part}{expert}")["default"].weight for part in "AB")
        share = (decision.choices == expert) * decision.weights
        wanted = wanted + share.sum(-1, keepdim=True) * 2.0 * (hidden @ down.T @ up.T)
    assert torch.allclose(got, wanted, atol=1e-5)


def test_a_pool_smaller_than_top_k_uses_all_of_it_as_it_grows(make_plain, wake, tmp_path):
    base = make_plain().eval()
    weave = prw.inject(base, rank=3, experts=["a"], top_k=2)
    wake(weave)
    hidden = torch.randn(2, 5, 8)
    shapes = []
    alone = base(hidden)
    for name in ("b", "c"):
        weave.add_expert(name, init="a")
        with weave.record() as routing:
            base(hidden)
        shapes.append(routing.all()[0].expert_ids.shape)
    assert shapes == [(2, 5, 2), (2, 5, 2)]
    with weave.as_of("a"), weave.record() as routing:
        assert torch.equal(base(hidden), alone)
        assert routing.all()[0].expert_ids.shape == (2, 5)
    together = base(hidden)
    weave.save_pretrained(tmp_path)
    weave.eject()
    assert prw.load(base, tmp_path).settings.top_k == 2
    assert torch.equal(base(hidden), together)

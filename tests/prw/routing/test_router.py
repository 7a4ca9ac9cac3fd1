"""The router: features, logits with and without noise, and the decision made of them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from prw.config import PoolSettings
from prw.errors import RoutingError
from prw.routing import decide, noisy_logits, router_logits, top_1
from prw.routing.router import ALONE, BLOCK, as_batch, pooled, router_features, several_logits


@given(st.integers(1, 4), st.integers(1, 6), st.data())
def test_pooling_is_the_mean_of_the_routed_tokens(batch, tokens, data):
    features = torch.randn(batch, tokens, 3)
    flags = data.draw(st.lists(st.booleans(), min_size=batch * tokens, max_size=batch * tokens))
    mask = torch.tensor(flags).reshape(batch, tokens)
    for sample in range(batch):
        picked = features[sample][mask[sample]]
        wanted = picked.mean(0) if len(picked) else torch.zeros(3)
        assert torch.allclose(pooled(features, mask)[sample, 0], wanted, atol=1e-6)
    assert torch.allclose(pooled(features, torch.ones_like(mask)), pooled(features, None), atol=1e-6)


def test_what_is_not_routed_cannot_poison_the_mean():
    features = torch.randn(1, 3, 2)
    features[0, 1] = float("nan")
    assert pooled(features, torch.tensor([[True, False, True]])).isfinite().all()


def test_shapes_are_seen_as_batch_and_tokens():
    assert as_batch(torch.zeros(5, 4)).shape == (1, 5, 4)
    assert as_batch(torch.zeros(2, 5, 4)).shape == (2, 5, 4)
    assert as_batch(torch.zeros(2, 3, 5, 4)).shape == (2, 15, 4)
    with pytest.raises(RoutingError, match=r"\(4,\).*unsqueeze"):
        as_batch(torch.zeros(4))


def test_the_norm_makes_the_size_of_the_input_irrelevant():
    hidden = torch.randn(2, 3, 16)
    small, large = (router_features(hidden * factor, "token", None, True) for factor in (1.0, 100.0))
    assert torch.allclose(small, large, atol=1e-4)
    assert torch.allclose(large.square().mean(-1), torch.ones(2, 3), atol=1e-4)
    assert torch.equal(router_features(hidden, "token", None, False), hidden)


COUNTS = st.integers(1, ALONE + BLOCK + 6)


def drawn(seed, count, batch=2, items=5, wide=12, layout="plain", trains=-1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(items + 2, batch, wide + 3, generator=generator, dtype=dtype)
    features = features.transpose(0, 1)[:, 1 : 1 + items, :wide]
    features = features.contiguous() if layout == "plain" else features
    vectors = [
        torch.randn(1, wide, generator=generator, dtype=dtype).requires_grad_(bool(trains >> (at % 60) & 1))
        for at in range(count)
    ]
    return features.requires_grad_(), vectors


LAYOUTS = st.sampled_from(["plain", "strided"])


@given(seed=st.integers(0, 99), old=COUNTS, more=COUNTS, layout=LAYOUTS, trains=st.integers(0, 2**60))
def test_growth_and_freezing_change_no_bit_of_old_logits(seed, old, more, layout, trains):
    features, vectors = drawn(seed, old + more, layout=layout)
    _, others = drawn(seed, old + more, layout=layout, trains=trains)
    wanted = router_logits(features, vectors[:old])
    assert torch.equal(router_logits(features, vectors)[..., :old], wanted)
    assert torch.equal(router_logits(features, others)[..., :old], wanted)


@given(
    seed=st.integers(0, 99),
    count=COUNTS,
    items=st.integers(0, 4),
    layout=LAYOUTS,
    trains=st.integers(0, 2**60),
    silent=st.booleans(),
)
def test_scores_and_gradients_are_those_of_a_plain_product(seed, count, items, layout, trains, silent):
    settings = {"items": items, "layout": layout, "trains": trains, "dtype": torch.float64}
    features, vectors = drawn(seed, count, **settings)
    leaves = [x for x in (features, *vectors) if x.requires_grad]
    found = []
    for scores in (
        F.linear(features, torch.cat(vectors)),
        router_logits(features, vectors),
        several_logits(features, [vectors, vectors])[1],
    ):
        way = torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).view_as(scores) * (not silent)
        gradients = torch.autograd.grad(scores, leaves, way, allow_unused=True)
        found.append(
            [
                scores,
                *(torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)),
            ]
        )
    for other in found[1:]:
        assert all(torch.allclose(x, y, atol=1e-9) for x, y in zip(found[0], other, strict=True))


def test_second_derivatives_are_those_of_a_plain_product():
    features, vectors = drawn(0, ALONE + 3, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x, *given: router_logits(x, given), (features, *vectors))


def vectors(experts, width, scale=1.0):
    return [torch.randn(1, width) * scale for _ in range(experts)]


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(1, 7))
def test_top_1_is_the_likeliest_of_all_with_its_own_probability(batch, items, experts, width):
    logits = router_logits(torch.randn(batch, items, width), vectors(experts, width))
    decision = top_1(logits, "prob")
    assert torch.equal(decision.expert_ids, logits.softmax(-1).argmax(-1))
    assert torch.equal(decision.weights, logits.softmax(-1).amax(-1))
    assert (decision.weights >= 1 / experts - 1e-6).all()
    assert decision.num_experts == experts


def test_a_pool_of_one_has_weight_one():
    decision = top_1(torch.randn(2, 3, 1), "prob")
    assert torch.equal(decision.weights, torch.ones(2, 3))
    assert not decision.expert_ids.any()


def test_the_unit_gate_is_one_with_the_gradient_of_the_probability():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    weights = top_1(logits, "unit").weights
    assert torch.equal(weights, torch.ones(2, 3))
    (gradient,) = torch.autograd.grad(weights.sum(), logits)
    (expected,) = torch.autograd.grad(top_1(logits, "prob").weights.sum(), logits)
    assert torch.equal(gradient, expected)
    assert expected.any()


def test_an_old_logit_does_not_notice_that_the_pool_grew():
    features, gates = torch.randn(3, 17, 24), vectors(6, 24)
    for size in range(1, 6):
        assert torch.equal(router_logits(features, gates)[..., :size], router_logits(features, gates[:size]))


def test_noise_has_the_deviation_that_the_formula_says():
    logits, noise = torch.zeros(1, 20_000, 2), torch.tensor([0.0, 2.0])
    spread = noisy_logits(logits, noise.expand_as(logits)).std(dim=1)
    assert torch.allclose(spread, F.softplus(noise), rtol=0.03)


def test_noise_is_reproduced_by_torchs_own_seed():
    settings, hidden = PoolSettings(), torch.randn(2, 5, 8)
    gates, noises = vectors(3, 8), vectors(3, 8)
    torch.manual_seed(1)
    first = decide(hidden, gates, noises, settings)
    torch.manual_seed(1)
    assert torch.equal(first.logits, decide(hidden, gates, noises, settings).logits)
    assert not torch.equal(first.logits, decide(hidden, gates, noises, settings).logits)
    assert torch.equal(decide(hidden, gates, [], settings).logits, router_logits(hidden, gates))


@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_what_is_not_routed_has_no_expert_and_no_weight(granularity):
    mask = torch.tensor([[True, False, True], [False, False, False]])
    settings = PoolSettings(granularity=granularity)
    decision = decide(torch.randn(2, 3, 8), vectors(2, 8), [], settings, mask)
    items = mask if granularity == "token" else mask.any(1, keepdim=True)
    assert torch.equal(decision.expert_ids >= 0, items)
    assert torch.equal(decision.weights > 0, items)


def test_routing_is_float32_under_autocast_and_16_bit_inputs():
    hidden, gates = torch.randn(2, 3, 8), vectors(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decision = decide(hidden, gates, [], PoolSettings())
    assert decision.logits.dtype == torch.float32
    assert torch.equal(decision.logits, decide(hidden.bfloat16(), gates, [], PoolSettings()).logits)
    assert decide(hidden.bfloat16(), gates, [], PoolSettings()).probabilities.dtype == torch.float32
    assert decide(hidden.double(), gates, [], PoolSettings()).probabilities.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_autocast_and_a_16_bit_model_decide_alike(granularity, dtype):
    """CUDA's autocast gives a projection what its norm made in float32; a 16-bit model gives it 16 bits."""
    hidden, gates = torch.randn(2, 50, 8), [vector.requires_grad_() for vector in vectors(3, 8)]
    settings = PoolSettings(granularity=granularity)
    with torch.autocast("cpu", dtype=dtype):
        trained = decide(hidden.requires_grad_(), gates, [], settings)
    drawn = decide(hidden.detach().to(dtype), gates, [], settings)
    assert all(torch.equal(x, y) for x, y in zip(trained, drawn, strict=True))
    of_hidden, *of_gates = torch.autograd.grad(trained.weights.sum(), [hidden, *gates])
    assert of_hidden.dtype == torch.float32 and of_hidden.any() and all(one.any() for one in of_gates)


def test_autocast_leaves_float64_alone_as_torch_does():
    hidden, gates = torch.randn(2, 3, 8).double(), [vector.double() for vector in vectors(2, 8)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decision = decide(hidden, gates, [], PoolSettings())
    assert torch.equal(decision.logits, decide(hidden, gates, [], PoolSettings()).logits)


@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_shapes_can_be_worked_out_on_the_meta_device(granularity):
    hidden = torch.empty(2, 3, 8, device="meta", dtype=torch.bfloat16)
    decision = decide(hidden, vectors(2, 8), vectors(2, 8), PoolSettings(granularity=granularity))
    assert decision.logits.device.type == "meta", "router vectors follow the features, wherever they live"
    assert decision.expert_ids.shape == (2, 3 if granularity == "token" else 1)


def test_noise_vectors_without_noise_change_nothing_and_get_a_gradient_of_zero():
    hidden, gates = torch.randn(2, 3, 8), [vector.requires_grad_() for vector in vectors(2, 8)]
    noises = [vectors(1, 8)[0], torch.full((1, 8), float("inf"), requires_grad=True)]
    expected = decide(hidden, gates, [], PoolSettings())
    decision = decide(hidden, gates, noises, PoolSettings(), noisy=False)
    assert all(torch.equal(x, y) for x, y in zip(decision, expected, strict=True))
    wanted = torch.autograd.grad(expected.logits.square().sum(), gates)
    *found, of_noise = torch.autograd.grad(decision.logits.square().sum(), [*gates, noises[1]])
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
    assert not of_noise.any()
    with torch.no_grad():
        again = decide(hidden, gates, noises, PoolSettings(), noisy=False)
    assert torch.equal(again.logits, expected.logits)

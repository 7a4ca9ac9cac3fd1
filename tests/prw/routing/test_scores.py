"""The router's products: old experts keep their bits when the pool grows; gradients are the plain ones."""

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from prw.routing import router_logits
from prw.routing.router import ALONE, BLOCK, several_logits

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

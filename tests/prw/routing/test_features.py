"""What the router looks at: tokens, masked means, normalisation, shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prw.errors import RoutingError
from prw.routing.router import as_batch, pooled, router_features


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

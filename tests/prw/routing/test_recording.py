"""What a record says: share, usage, gate; with and without gradient; over sites, items and samples."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prw.errors import RoutingError
from prw.routing import Routing, newest_indicator, top_1


def recorded(*logits, experts=("a", "b"), routed=None):
    routing = Routing(experts)
    for index, one in enumerate(logits):
        routing.add(f"site{index}", top_1(one, "prob", routed))
    return routing


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4))
def test_the_share_is_the_fraction_of_decisions_for_the_newest(sites, batch, items, experts):
    logits = [torch.randn(batch, items, experts) for _ in range(sites)]
    names = tuple(str(index) for index in range(experts))
    routing = recorded(*logits, experts=names)
    newest = torch.stack([one.argmax(-1) == experts - 1 for one in logits]).float()
    assert routing.share() == pytest.approx(float(newest.mean()))
    assert torch.allclose(routing.newest_share(per="sample"), newest.mean(dim=(0, 2)))
    assert routing.usage().shape == (sites, experts)
    assert torch.allclose(routing.usage().sum(-1), torch.ones(sites))
    assert float(routing.usage()[:, -1].mean()) == pytest.approx(routing.share())


def test_straight_through_has_the_hard_value_and_the_gradient_of_the_probability():
    logits = torch.randn(2, 5, 3, requires_grad=True)
    decision = top_1(logits, "prob")
    hard = newest_indicator(decision, "straight-through")
    assert set(hard.detach().unique().tolist()) <= {0.0, 1.0}
    (gradient,) = torch.autograd.grad(hard.sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(newest_indicator(decision, "soft").sum(), logits)
    assert torch.equal(gradient, expected)
    assert expected.any()


def test_items_that_are_not_routed_count_nowhere():
    logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    routing = recorded(logits, routed=torch.tensor([[True, False, True]]))
    assert routing.share() == 0.5
    assert routing.usage().tolist() == [[0.5, 0.5]]
    assert routing.gate() == pytest.approx(float(torch.tensor(1.0).sigmoid()))


def test_sites_with_more_items_weigh_more():
    routing = recorded(torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[1.0, 0.0]] * 3]))
    assert routing.share() == 0.25


def test_an_empty_record_and_mixed_batches_are_refused():
    with pytest.raises(RoutingError, match="no routing decision was recorded"):
        Routing(("a",)).share()
    with pytest.raises(RoutingError, match=r"batch sizes \[1, 2\]"):
        recorded(torch.zeros(1, 2, 2), torch.zeros(2, 2, 2)).newest_share(per="sample")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="two devices are needed, as nn.DataParallel has")
def test_decisions_of_several_devices_are_counted_together():
    routing = Routing(("a", "b"))
    for device in ("cpu", "cuda"):
        logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]], device=device)
        routing.add("site", top_1(logits, "prob"))
    assert routing.usage().tolist() == [[0.5, 0.5]]
    assert routing.share() == 0.5
    assert routing.newest_share(per="sample").tolist() == [0.5]

"""Padded batches under `route_only`: a sample gets what it gets alone, and pads count nowhere."""

import pytest
import torch

import prw


@pytest.fixture
def padded(make_host):
    """A BERT, a sample of four tokens, and a batch in which three pads follow them."""
    model = make_host("bert").model.eval()
    ids = torch.randint(1, 40, (2, 7))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    return model, ids[:1, :4], ids * mask, mask


@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_a_sample_does_not_notice_its_pads(padded, wake, granularity):
    model, alone, batch, mask = padded
    weave = prw.inject(model, rank=2, experts=["a", "b"], granularity=granularity)
    wake(weave)
    with weave.record() as routing:
        expected = model(alone).last_hidden_state
    by_itself = routing.newest_share(per="sample")
    with weave.route_only(mask.bool()), weave.record() as routing:
        output = model(batch, attention_mask=mask).last_hidden_state
    assert torch.allclose(output[:1, :4], expected, atol=1e-5)
    assert torch.allclose(routing.newest_share(per="sample")[:1], by_itself)
    counted = torch.stack([(each.expert_ids >= 0).sum() for of in routing.decisions.values() for each in of])
    assert counted.tolist() == [11 if granularity == "token" else 2] * 2
    with weave.record() as routing:
        noticed = model(batch, attention_mask=mask).last_hidden_state
    if granularity == "sample":
        assert not torch.allclose(noticed[:1, :4], expected, atol=1e-3), "unmasked pads enter the mean"
    else:
        assert sum((each.expert_ids >= 0).sum() for each in routing.decisions[weave.sites[0].name]) == 14

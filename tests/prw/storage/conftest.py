"""A saved pool with everything to compare it to."""

import pytest
import torch

import prw


@pytest.fixture
def saved(make_plain, wake, tmp_path):
    torch.manual_seed(11)
    model = make_plain().eval()
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    weave = prw.inject(model, rank=2, experts=["a", "b"], granularity="sample", gate="unit")
    wake(weave)
    weave.save_pretrained(tmp_path / "pool")
    hidden = torch.randn(2, 5, 8)
    return base, tmp_path / "pool", hidden, model(hidden)


def fresh(make_plain, base):
    model = make_plain().eval()
    model.load_state_dict(base)
    return model

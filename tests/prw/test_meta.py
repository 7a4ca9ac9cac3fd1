"""A model on the meta device: shapes without memory, as loaders and planners want them."""

import pytest
import torch

import prw


@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_a_forward_on_the_meta_device_gives_shapes(make_plain, granularity):
    with torch.device("meta"):
        model = make_plain()
        weave = prw.inject(model, rank=2, experts=["a", "b"], granularity=granularity)
        with weave.record() as routing:
            assert model(torch.empty(2, 5, 8)).shape == (2, 5, 8)
    assert len(routing.decisions) == 2

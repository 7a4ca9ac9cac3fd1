"""The plain operations for graphs equal the reference on outputs and all gradients."""

import torch
from hypothesis import given

from prw.kernels import reference, traceable
from tests.prw.kernels.problems import (
    SHAPES,
    problem,
)


@given(shape=SHAPES)
def test_traceable_equals_the_reference(shape):
    made = problem(**{**shape, "tokens": 1})
    for part, seed in zip(made.projections, made.seeds, strict=True):
        wanted_of = [x for x in (made.hidden, made.weights, *part.downs, *part.ups) if x.requires_grad]
        found = []
        for compute in (traceable, reference):
            output = compute(made.hidden, part.downs, part.ups, made.ids, made.weights, 1.5)
            found.append([output, *torch.autograd.grad(output, wanted_of, seed)])
        assert all(torch.allclose(x, y, atol=1e-9) for x, y in zip(*found, strict=True))

"""Every kernel equals the reference on outputs and all gradients, and the reference equals the formula."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.prw.kernels.problems import (
    ALIGNED,
    SHAPES,
    WAYS,
    outputs,
    outputs_and_gradients,
    problem,
)


@given(shape=SHAPES)
def test_the_reference_is_the_formula_token_by_token(shape):
    made = problem(**shape)
    ids, weights = (x if x.dim() == 2 else x.unsqueeze(-1) for x in (made.ids, made.weights))
    for part, output in zip(made.projections, outputs(made, "reference"), strict=True):
        for row, got in enumerate(output):
            x, item = made.hidden[row], row // made.tokens
            wanted = torch.zeros_like(got)
            if part.weight is not None:
                wanted += part.weight @ x + (0 if part.bias is None else part.bias)
            for expert, weight in zip(ids[item].tolist(), weights[item], strict=True):
                if expert >= 0:
                    wanted += weight * 1.5 * (part.ups[expert] @ (part.downs[expert] @ x))
            assert torch.allclose(got, wanted, atol=1e-9)


@pytest.mark.parametrize("way", ["dense", "grouped"])
@given(shape=SHAPES)
def test_a_kernel_equals_the_reference_on_outputs_and_all_gradients(way, shape):
    made = problem(**shape)
    pairs = zip(outputs_and_gradients(made, way), outputs_and_gradients(made, "reference"), strict=True)
    assert all(got.shape == wanted.shape and torch.allclose(got, wanted, atol=1e-9) for got, wanted in pairs)


@given(shape=SHAPES, tokens=st.integers(2, 4))
def test_gathered_samples_equal_the_reference(shape, tokens):
    """The way of whole samples on CUDA: no sort, a batch of products."""
    made = problem(**{**shape, "tokens": tokens})
    pairs = zip(outputs_and_gradients(made, "sorted"), outputs_and_gradients(made, "reference"), strict=True)
    assert all(torch.allclose(got, wanted, atol=1e-9) for got, wanted in pairs)


@pytest.mark.parametrize("way", WAYS)
@given(shape=ALIGNED)
@settings(max_examples=40)
@example(
    shape={"seed": 33, "items": 3, "ranks": [8, 4, 4, 12], "k": 0, "wide": 4, "outs": [4]}
    | {"base": "none", "trains": 0, "layout": "plain", "skew": "one"}  # a gradient of a gate nearly cancels
)
def test_float32_is_as_near_as_float32_can_be(way, shape):
    made = problem(**shape)
    truth, sizes = (outputs_and_gradients(given, "reference") for given in (made, made.absolute()))
    got = outputs_and_gradients(made.to(torch.float32), way)
    for mine, wanted, size in zip(got, truth, sizes, strict=True):
        assert mine.dtype == torch.float32 or mine.numel() == 0
        assert ((mine.double() - wanted).abs() <= 1e-6 * size).all()


def test_auto_and_no_experts_axis_are_the_same_as_their_long_forms():
    made = problem(2, items=9, k=1)
    short = outputs(replace(made, ids=made.ids[:, 0], weights=made.weights[:, 0]), "auto")
    long = outputs(made, "grouped")
    assert all(torch.equal(x, y) for x, y in zip(short, long, strict=True))

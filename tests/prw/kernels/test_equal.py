"""Every kernel equals the reference on outputs and all gradients, and the reference equals the formula."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prw.kernels import reference, traceable
from tests.prw.kernels.problems import (
    ALIGNED,
    SHAPES,
    WAYS,
    Projection,
    error,
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


@pytest.mark.parametrize("way", ["dense", "grouped", "sorted"])
@pytest.mark.parametrize("k", [0, 2])
def test_gradients_are_the_slopes(way, k):
    made = problem(3, items=3, tokens=2, ranks=(2, 1, 3), k=k, wide=3, outs=(2, 1))
    leaves = made.leaves()

    def run(*leaves):
        left = iter([leaf.clone() for leaf in leaves])  # it changes .data, which torch does not count
        hidden, weights = next(left), next(left)
        parts = [
            Projection([next(left) for _ in range(3)], [next(left) for _ in range(3)], 1.5, *(left_two(left)))
            for _ in range(2)
        ]
        moved = problem(3, items=3, tokens=2, ranks=(2, 1, 3), k=k, wide=3, outs=(2, 1))
        moved.hidden, moved.weights, moved.projections = hidden, weights, parts
        return tuple(outputs(moved, way))

    def left_two(left):
        return next(left), next(left)

    assert torch.autograd.gradcheck(run, leaves)


def lora_by_peft(hidden, part, ids, weights):
    """PEFT's formula: result + B(A(x)) * scale, rounded where PEFT rounds; gated, and by expert."""
    result = torch.nn.functional.linear(hidden, part.weight, part.bias)
    dtype = result.dtype
    added = torch.zeros(result.shape, dtype=part.ups[0].dtype)
    for expert, (down, up) in enumerate(zip(part.downs, part.ups, strict=True)):
        rows = (ids == expert).nonzero()[:, 0]
        delta = torch.nn.functional.linear(torch.nn.functional.linear(hidden[rows].to(down.dtype), down), up)
        added = added.index_copy(0, rows, delta * 1.5 * weights[rows].to(delta.dtype).unsqueeze(-1))
    return (result + added).to(dtype)


@pytest.mark.parametrize("experts", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
def test_16_bits_lose_no_more_than_in_pefts_own_formula(way, experts, size):
    """Against float64 on the same rounded numbers: outputs, and gradients of input, gates, A and B."""
    exact = problem(5, items=256, ranks=(8, 8, 8), wide=64, outs=(64,), k=0)
    exact.projections[0] = exact.projections[0]._replace(
        ups=[(up.detach() * size).requires_grad_() for up in exact.projections[0].ups]
    )
    made = exact.to(torch.bfloat16, experts)
    part = made.projections[0]
    truth = outputs_and_gradients(made.to(torch.float64), "reference")
    got = outputs_and_gradients(made, way)
    theirs = lora_by_peft(made.hidden, part, made.ids, made.weights)
    by_peft = [theirs, *torch.autograd.grad(theirs, made.leaves(), made.seeds[0].to(theirs.dtype))]
    assert [x.dtype for x in got] == [x.dtype for x in by_peft]
    kinds = {"output": [0], "input": [1], "gates": [2], "A": [3, 4, 5], "B": [6, 7, 8], "base": [9, 10]}
    for kind, places in kinds.items():
        mine, other = (sum(error(found[at], truth[at]) for at in places) for found in (got, by_peft))
        assert mine <= 1.05 * other, kind


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("base", ["none", "bias"])
def test_autocast_computes_experts_in_16_bits_and_gives_gradients_in_their_own(way, base):
    made = problem(1, items=12, ranks=(8, 8), wide=16, outs=(8, 16), base=base).to(torch.float32)
    truth = outputs_and_gradients(made.to(torch.float64), "reference")
    with torch.autocast("cpu", torch.bfloat16):
        found = outputs(made, way)
        by_reference = outputs(made, "reference")
    assert {output.dtype for output in found} == {torch.bfloat16}
    assert {output.dtype for output in by_reference if base == "bias"} <= {torch.bfloat16}
    gradients = torch.autograd.grad(found, made.leaves(), [seed.bfloat16() for seed in made.seeds])
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert max(error(x, wanted) for x, wanted in zip([*found, *gradients], truth, strict=True)) < 0.03


@pytest.mark.parametrize("way", ["reference", *WAYS])
def test_a_16_bit_input_is_computed_in_the_experts_dtype(way):
    made = problem(1, items=12, ranks=(8, 8), wide=16, outs=(8,), base="none").to(torch.float32)
    made.hidden = made.hidden.detach().bfloat16()
    (low,) = outputs(made, way)
    made.hidden = made.hidden.float()
    (high,) = outputs(made, way)
    assert low.dtype == torch.float32
    assert torch.equal(low, high)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("base", ["none", "bias"])
def test_without_gradients_it_is_computed_in_the_inputs_dtype(way, base):
    made = problem(1, items=12, ranks=(8, 8), wide=16, outs=(8, 16), base=base).to(
        torch.bfloat16, torch.float32
    )
    truth = outputs(made.to(torch.float64), "reference")
    with torch.no_grad():
        found = outputs(made, way)
    assert {output.dtype for output in found} == {torch.bfloat16}
    assert max(error(x, wanted) for x, wanted in zip(found, truth, strict=True)) < 6e-3


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


def test_auto_and_no_experts_axis_are_the_same_as_their_long_forms():
    made = problem(2, items=9, k=1)
    short = outputs(replace(made, ids=made.ids[:, 0], weights=made.weights[:, 0]), "auto")
    long = outputs(made, "grouped")
    assert all(torch.equal(x, y) for x, y in zip(short, long, strict=True))

"""Shrink and expand: gradients against finite differences, and dtypes in 16 bits and under autocast."""

import pytest
import torch

from tests.prw.kernels.problems import (
    WAYS,
    Projection,
    error,
    outputs,
    outputs_and_gradients,
    problem,
)


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

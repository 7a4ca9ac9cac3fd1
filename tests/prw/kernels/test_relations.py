"""Relations that hold whatever the numbers are: order, names, unused experts, parts of a batch, bits."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from prw.kernels import make_plan, shrink
from tests.prw.kernels.problems import ALIGNED, SHAPES, WAYS, outputs, outputs_and_gradients, problem

EXACT = ("dense", "grouped")


def near(got, wanted):
    return all(torch.allclose(x, y, atol=1e-9) for x, y in zip(got, wanted, strict=True))


def same(got, wanted):
    return all(torch.equal(x, y) for x, y in zip(got, wanted, strict=True))


def drawn(shape, **changes):
    return problem(**{**shape, **changes})


@pytest.mark.parametrize("way", EXACT)
@given(shape=SHAPES)
def test_the_order_of_items_is_the_order_of_outputs(way, shape):
    made = drawn(shape, layout="plain")
    order = torch.randperm(len(made.ids))
    rows = (order.unsqueeze(1) * made.tokens + torch.arange(made.tokens)).flatten()
    moved = replace(made, hidden=made.hidden[rows], ids=made.ids[order], weights=made.weights[order])
    assert near(outputs(moved, way), [output[rows] for output in outputs(made, way)])


@pytest.mark.parametrize("way", EXACT)
@given(shape=SHAPES)
def test_experts_have_no_names(way, shape):
    made = drawn(shape)
    order = torch.randperm(len(shape["ranks"])).tolist()
    renamed = [
        part._replace(downs=[part.downs[at] for at in order], ups=[part.ups[at] for at in order])
        for part in made.projections
    ]
    places = torch.tensor([order.index(expert) for expert in range(len(order))])
    ids = torch.where(made.ids >= 0, places[made.ids.clamp(min=0)], -1)
    assert near(outputs(replace(made, projections=renamed, ids=ids), way), outputs(made, way))


@given(shape=SHAPES, rank=st.integers(1, 6))
def test_an_expert_that_nobody_chose_changes_no_bit(shape, rank):
    """Of the outputs and of all gradients; sorted rows do not meet it.

    If its rank is larger than all others', rows in rank space lie otherwise, and products round otherwise.
    """
    rank = min(rank, *shape["ranks"], 9)
    made = drawn(shape, base="bias")
    more = drawn({**shape, "outs": shape["outs"]}, ranks=[rank], trains=-1, base="none", seed=7)
    longer = [
        part._replace(downs=[*part.downs, *extra.downs], ups=[*part.ups, *extra.ups])
        for part, extra in zip(made.projections, more.projections, strict=True)
    ]
    grown, seeds = replace(made, projections=longer), made.seeds
    assert same(outputs(grown, "grouped"), outputs(made, "grouped"))
    before = torch.autograd.grad(outputs(made, "grouped"), made.leaves(), seeds)
    assert same(torch.autograd.grad(outputs(grown, "grouped"), made.leaves(), seeds), before)
    assert near(outputs(grown, "dense"), outputs(made, "dense"))


@pytest.mark.parametrize("way", EXACT)
@given(shape=SHAPES, at=st.integers(0, 9))
def test_parts_of_a_batch_give_the_parts_of_its_outputs(way, shape, at):
    made = drawn(shape)
    halves = []
    for items in (slice(0, at), slice(at, None)):
        rows = slice(items.start * made.tokens, None if items.stop is None else at * made.tokens)
        half = replace(made, hidden=made.hidden[rows], ids=made.ids[items], weights=made.weights[items])
        halves.append(outputs(half, way))
    assert near([torch.cat(pair) for pair in zip(*halves, strict=True)], outputs(made, way))


@pytest.mark.parametrize("way", EXACT)
@given(shape=SHAPES)
def test_a_gate_of_zero_leaves_the_base_and_nobody_chosen_too(way, shape):
    made = drawn(shape, base="bias")
    base = [F.linear(made.hidden, part.weight, part.bias) for part in made.projections]
    assert near(outputs(replace(made, weights=torch.zeros_like(made.weights)), way), base)
    assert near(outputs(replace(made, ids=torch.full_like(made.ids, -1)), way), base)


@pytest.mark.parametrize("way", EXACT)
@given(shape=SHAPES)
def test_one_expert_for_all_is_a_linear_with_merged_weights(way, shape):
    made = drawn(shape, base="bias", k=0)
    chosen = len(shape["ranks"]) - 1
    all_one = replace(made, ids=torch.full_like(made.ids, chosen), weights=torch.full_like(made.weights, 0.7))
    merged = [
        F.linear(made.hidden, part.weight + 0.7 * 1.5 * part.ups[chosen] @ part.downs[chosen], part.bias)
        for part in made.projections
    ]
    assert near(outputs(all_one, way), merged)


@pytest.mark.parametrize("way", EXACT)
@given(shape=SHAPES)
def test_one_expert_of_weight_one_is_pefts_lora(way, shape):
    made = drawn(shape, ranks=shape["ranks"][:1], base="bias", outs=shape["outs"][:1], k=0, trains=-1)
    (part,), rank = made.projections, shape["ranks"][0]
    model = torch.nn.Sequential(torch.nn.Linear(*reversed(part.weight.shape), dtype=torch.float64))
    get_peft_model(model, LoraConfig(target_modules=["0"], r=rank, lora_alpha=1.5 * rank))
    with torch.no_grad():
        model[0].base_layer.weight.copy_(part.weight)
        model[0].base_layer.bias.copy_(part.bias)
        model[0].lora_A["default"].weight.data = part.downs[0].detach().clone()
        model[0].lora_B["default"].weight.data = part.ups[0].detach().clone()
    all_one = replace(made, ids=torch.zeros_like(made.ids), weights=torch.ones_like(made.weights))
    assert near(outputs(all_one, way), [model(made.hidden)])


@pytest.mark.parametrize("way", EXACT)
@given(shape=SHAPES, trains=st.integers(0, 31))
def test_what_trains_changes_no_bit_of_the_outputs(way, shape, trains):
    """Else a recalled stage, all frozen, would not be the stage that trained."""
    assert same(outputs(drawn(shape, trains=trains), way), outputs(drawn(shape, trains=0), way))


@pytest.fixture(params=[1, 2])
def threads(request):
    """One thread, and two; between them torch's own products differ by a rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("way", WAYS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(shape=ALIGNED)
def test_twice_the_same_bits(threads, way, shape):
    made = problem(**shape).to(torch.float32)
    first = outputs_and_gradients(made, way)
    assert all(same(outputs_and_gradients(made, way), first) for _ in range(3))


@pytest.mark.parametrize("way", WAYS)
def test_large_sizes_are_the_same_twice(threads, way):
    made = problem(1, items=700, ranks=(16, 16, 16), k=2, wide=512, outs=(512,)).to(torch.float32)
    first = outputs_and_gradients(made, way)
    assert all(same(outputs_and_gradients(made, way), first) for _ in range(3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("way", ["reference", *WAYS])
@pytest.mark.parametrize("letter", ["A", "B"])
def test_what_is_not_finite_stays_with_its_expert(way, letter, tokens, value):
    """With one exception, which docs/concepts/kernels.md tells of: dense multiplies all with zeros."""
    made = problem(0, items=8, tokens=tokens, ranks=(4, 4, 4), wide=8, outs=(8,)).to(torch.float32)
    made.ids[made.ids == 1] = 2
    with torch.no_grad():
        part = made.projections[0]
        (part.downs if letter == "A" else part.ups)[1].fill_(value)
    hidden, weights = made.hidden, made.weights
    (output,) = outputs(made, way)
    leaves = [hidden, weights, *(x for at in (0, 2) for x in (part.downs[at], part.ups[at]))]
    gradients = torch.autograd.grad(output.sum(), leaves)
    clean = all(bool(x.isfinite().all()) for x in (output, *gradients))
    if (way, letter) == ("dense", "A"):
        assert output.isfinite().all() and not gradients[0].isfinite().all()
    elif way == "dense":
        assert not output.isfinite().all()
    else:
        assert clean


def test_an_axis_of_one_choice_changes_no_bit():
    made = problem(2, items=9, k=1)
    for way in ("reference", *EXACT):
        flat = replace(made, ids=made.ids[:, 0], weights=made.weights[:, 0])
        assert same(outputs(flat, way), outputs(made, way))


@pytest.mark.parametrize("kernel", EXACT)
def test_several_lists_in_one_shrink_are_the_bits_of_each_alone(kernel):
    made = problem(4, items=20, ranks=(3, 2), outs=(4, 6, 5), k=1)
    lists, read = [part.downs for part in made.projections], made.hidden.detach()
    plan = make_plan(kernel, made.ids, 2)
    together = shrink(made.hidden, lists, plan, read)
    assert same(together, [shrink(made.hidden, [downs], plan, read)[0] for downs in lists])

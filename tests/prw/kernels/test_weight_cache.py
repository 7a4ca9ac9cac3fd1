"""Stacked copies of frozen weights: made once, never stale, and gone with the model."""

import gc
import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import prw
from prw.kernels.weight_cache import CACHE, stacked
from tests.prw.conftest import Plain


def living():
    """Count the stacks of living models."""
    gc.collect()
    return len(CACHE)


def woven(experts=3, kernel="dense"):
    model = Plain(blocks=1).eval()
    weave = prw.inject(model, rank=2, kernel=kernel)
    for index in range(experts):
        grow(weave, f"e{index}")
    return model, weave


def grow(weave, name):
    weave.add_expert(name)
    newest = len(weave.experts) - 1
    with torch.no_grad():
        for path, weight in weave.model.named_parameters():
            if f".prw_B{newest}." in path or f".prw_gate{newest}." in path:
                weight.copy_(torch.randn(weight.shape) * 0.3)


def experts_of(model, letter="AB"):
    return [
        (path, weight) for path, weight in model.named_parameters() if path.split(".prw_")[-1][0] in letter
    ]


def by_both(model, weave, hidden):
    """The outputs of the stacks and of the definition."""
    pool = model.blocks[0].to_k.sites["default"].pool
    found = []
    for kernel in ("dense", "reference"):
        pool.kernel = kernel
        found.append(model(hidden).detach())
    pool.kernel = "dense"
    return found


def in_place(model, weave, pick):
    weights = experts_of(model)
    with torch.no_grad():
        weights[pick % len(weights)][1].mul_(-1.5)


def in_place_for_inference(model, weave, pick):
    weights = experts_of(model)
    with torch.inference_mode():
        weights[pick % len(weights)][1].mul_(-1.5)


def replaced(model, weave, pick):
    weights = experts_of(model)
    path, weight = weights[pick % len(weights)]
    holder = model.get_submodule(path.rpartition(".")[0])
    holder.weight = nn.Parameter(weight.detach() * -0.7, requires_grad=weight.requires_grad)


def new_data(model, weave, pick):
    weights = experts_of(model)
    weight = weights[pick % len(weights)][1]
    weight.data = weight.data * -0.8


def loaded(model, weave, pick):
    state = {path: weight.clone() for path, weight in model.state_dict().items()}
    for path in state:
        if ".prw_" in path:
            state[path] = torch.randn_like(state[path]) * 0.3
    model.load_state_dict(state, assign=bool(pick % 2))


def cast(model, weave, pick):
    model.to(torch.float64 if pick % 2 else torch.float32)


def trained(model, weave, pick):
    training = list(weave.trainable_parameters())  # none once the newest was removed
    optimiser = torch.optim.AdamW(training, lr=0.1) if training else None
    for _ in range(2 if training else 0):
        model(torch.randn(1, 4, 8, dtype=dtype_of(model))).square().sum().backward()
        optimiser.step()


def grown(model, weave, pick):
    taken = itertools.count(
        len(weave.experts)
    )  # one that was removed may have left its number to a living one
    grow(weave, next(name for number in taken if (name := f"e{number}") not in weave.experts))


def removed(model, weave, pick):
    if len(weave.experts) > 1:
        weave.remove_expert(weave.experts[pick % len(weave.experts)])


def recalled(model, weave, pick):
    with weave.as_of(weave.experts[pick % len(weave.experts)]):
        got, wanted = by_both(model, weave, torch.randn(1, 4, 8, dtype=dtype_of(model)))
        assert torch.allclose(got, wanted, atol=1e-5)


def inferred(model, weave, pick):
    with torch.inference_mode():
        model(torch.randn(1, 4, 8, dtype=dtype_of(model)))


def dtype_of(model):
    return model.blocks[0].to_q.weight.dtype


CHANGES = (
    in_place,
    in_place_for_inference,
    replaced,
    new_data,
    loaded,
    cast,
    trained,
    grown,
    removed,
    recalled,
    inferred,
)


@given(changes=st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 7)), min_size=1, max_size=6))
@settings(max_examples=40)
@example(changes=[(grown, 0), (removed, 0), (grown, 0)])
def test_no_change_leaves_a_stale_stack(changes):
    model, weave = woven()
    for change, pick in changes:
        change(model, weave, pick)
        got, wanted = by_both(model, weave, torch.randn(1, 4, 8, dtype=dtype_of(model)))
        assert torch.allclose(got, wanted, atol=1e-5), change.__name__


@pytest.mark.parametrize("change", [change for change in CHANGES if change not in (cast, inferred, recalled)])
def test_the_changes_above_do_change_something(change):
    model, weave = woven()
    hidden = torch.randn(1, 4, 8)
    before = by_both(model, weave, hidden)[1]
    for pick in range(12):
        change(model, weave, pick)
    assert not torch.allclose(by_both(model, weave, hidden)[0], before, atol=1e-5)


def test_stacks_go_when_the_model_goes():
    before = living()
    model, weave = woven()
    model(torch.randn(1, 4, 8)).sum().backward()
    assert len(CACHE) == before + 4, "A and B of K and of V"
    del model, weave
    assert living() == before


def test_growth_and_casts_leave_no_old_stacks_behind():
    before = living()
    model, weave = woven()
    for step in range(4):
        grow(weave, f"more{step}")
        model.to(torch.float64).to(torch.float32)
        model(torch.randn(1, 4, 8)).sum().backward()
    assert len(CACHE) == before + 4


def test_sorting_on_a_host_stacks_nothing():
    before = living()
    model, _ = woven(kernel="grouped")
    model(torch.randn(1, 4, 8)).sum().backward()
    assert len(CACHE) == before


def test_a_weight_made_for_inference_and_an_uncounted_one_are_copied_each_time():
    before = living()
    with torch.inference_mode():
        weights = [torch.randn(2, 3), torch.randn(2, 3)]
        assert torch.equal(stacked(weights, torch.float32, True), torch.cat(weights))
    uncounted = [torch.randn(2, 3), torch.randn(2, 3)]
    stacked(uncounted, torch.float32, False)
    uncounted[0].data.mul_(2)
    assert torch.equal(stacked(uncounted, torch.float32, False), torch.cat(uncounted))
    assert len(CACHE) == before


@given(ranks=st.lists(st.integers(1, 5), min_size=1, max_size=5), extra=st.integers(0, 2))
def test_rows_of_one_height_have_zeros_behind(ranks, extra):
    weights = [torch.randn(rank, 3) for rank in ranks]
    height = max(ranks) + extra
    for fixed in (True, False):
        for _ in range(2):
            rows = stacked(weights, torch.float32, fixed, height)
            if len(weights) > 1:
                for cut, weight in zip(rows.view(len(ranks), height, 3), weights, strict=True):
                    assert torch.equal(cut[: len(weight)], weight)
                    assert not cut[len(weight) :].any()
            with torch.no_grad():
                weights[0].add_(1)


def test_a_write_through_data_is_copied_once_its_version_is_counted():
    weights = [nn.Parameter(torch.randn(2, 3), requires_grad=False) for _ in range(2)]
    stacked(weights, torch.float32, fixed=True)
    weights[0].data.mul_(2)
    torch.autograd.graph.increment_version(weights[0])
    assert torch.equal(stacked(weights, torch.float32, fixed=True), torch.cat(weights))

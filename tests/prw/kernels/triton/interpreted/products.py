"""The Triton kernels, run by Triton's interpreter on the CPU, equal plain loops.

Not collected by name: test_interpreted.py runs this file in a process of its own, with TRITON_INTERPRET=1.
"""

import os

import pytest
import torch
import triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prw.errors import ConfigError
from prw.kernels import reference
from prw.kernels import triton as backend
from prw.kernels.triton import blocks
from prw.kernels.triton.code import shrink_kernel
from tests.prw.kernels.triton.interpreted.problems import (
    draw,
    expanded,
    problems,
    shrunk,
    with_broken_expert,
)

settings.register_profile(
    "interpreted",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    max_examples=10,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("interpreted")
SCALE = 1.5


def close(got, wanted, tolerance=1e-5):
    wanted = wanted.double()
    return got.isfinite().all() and (got.double() - wanted).norm() <= tolerance * (1e-3 + wanted.norm())


def decided(problem):
    return backend.plan(problem.ids, problem.experts, problem.tokens_per_item)


def test_this_file_runs_in_the_interpreter():
    assert not isinstance(shrink_kernel, triton.JITFunction)


@given(problem=problems(), stacks=st.integers(1, 3))
def test_shrink_equals_loops(problem, stacks):
    several = [problem.downs, problem.also(1), problem.also(2)][:stacks]
    lows = backend.shrink(decided(problem), problem.hidden, several)
    assert all(close(low, shrunk(problem, m)) for low, m in zip(lows, several, strict=True))
    assert {low.dtype for low in lows} == {problem.hidden.dtype}


@given(problem=problems(), stacks=st.integers(1, 3))
def test_expand_equals_loops_and_writes_every_row(problem, stacks):
    plan = decided(problem)
    rank = max(problem.downs, key=len).shape[0]
    lows = [torch.randn(plan.choices, rank) for _ in range(stacks)]
    several = [problem.downs, problem.also(1), problem.also(2)][:stacks]
    out = backend.expand(plan, lows, several)
    assert close(out, expanded(problem, lows, several))
    nowhere = (problem.per_token < 0).all(1)
    assert not out[nowhere].any()


@given(problem=problems(), expert=st.integers(0, 4))
def test_weight_gradient_equals_loops(problem, expert):
    expert %= problem.experts
    plan, rank = decided(problem), len(problem.downs[expert])
    low = torch.randn(plan.choices, max(len(down) for down in problem.downs))
    got = backend.weight_gradient(plan, low, problem.hidden, expert, rank)
    mine = (problem.per_token.flatten() == expert).double().unsqueeze(1)
    tokens = problem.hidden.double().repeat_interleave(plan.slots, 0)
    assert got.shape == (rank, problem.hidden.shape[1])
    assert close(got, (low[:, :rank].double() * mine).mT @ tokens)


@given(problem=problems())
def test_values_go_to_choices_and_back_by_the_transpose(problem):
    plan = decided(problem)
    values, there = torch.rand_like(problem.weights), torch.rand(plan.choices)
    spread = plan.per_choice(values)
    routed = torch.where(problem.ids >= 0, values, 0)
    assert torch.equal(spread, routed.repeat_interleave(problem.tokens_per_item, 0).flatten())
    gathered = plan.per_item(there)
    assert gathered.shape == problem.ids.shape
    assert torch.allclose((spread * there).sum(), (values * gathered).sum(), atol=1e-4)


def forward_and_backward(problem, gradient, newest):
    """The formulas of prw.kernels' autograd function, out of this backend's products."""
    plan, hidden = decided(problem), problem.hidden
    (low,) = backend.shrink(plan, hidden, [problem.downs])
    gate = SCALE * plan.per_choice(problem.weights).unsqueeze(1)
    out = backend.expand(plan, [low * gate], [problem.transposed_ups])
    (back,) = backend.shrink(plan, gradient, [problem.transposed_ups])
    of_weights = SCALE * plan.per_item((back * low).sum(1))
    of_hidden = backend.expand(plan, [back * gate], [problem.downs])
    rank = len(problem.downs[newest])
    of_down = backend.weight_gradient(plan, back * gate, hidden, newest, rank)
    of_up = backend.weight_gradient(plan, low * gate, gradient, newest, rank).mT
    return out, of_hidden, of_weights, of_down, of_up


@given(problem=problems())
def test_forward_and_backward_equal_the_reference_and_autograd(problem):
    newest = problem.experts - 1
    doubled = [
        [tensor.double().requires_grad_() for tensor in tensors]
        for tensors in ([problem.hidden, problem.weights], problem.downs, problem.ups)
    ]
    (hidden, weights), downs, ups = doubled
    per_token = weights.repeat_interleave(problem.tokens_per_item, 0)
    wanted = reference(hidden, downs, ups, problem.per_token, per_token, SCALE)
    gradient = torch.randn(wanted.shape)
    inputs = [hidden, weights, downs[newest], ups[newest]]
    grads = torch.autograd.grad(wanted, inputs, gradient.double())
    got = forward_and_backward(problem, gradient, newest)
    assert all(close(x, y.detach()) for x, y in zip(got, [wanted, *grads], strict=True))


def splits_early(monkeypatch):
    """Let a device of 64 processors divide an axis of few blocks, which the interpreter soon goes through."""
    monkeypatch.setattr(blocks, "device_of", lambda index: (0, 64))
    monkeypatch.setattr(blocks, "LEAST_OF_SPLIT", 1)


@pytest.mark.parametrize("slots", [1, 2])
def test_splitting_the_wide_axis_changes_nothing_but_rounding(monkeypatch, slots):
    problem = draw(items=21, slots=slots, ranks=(5, 17, 1), wide=136)
    whole = backend.shrink(decided(problem), problem.hidden, [problem.downs, problem.also(1)])
    splits_early(monkeypatch)
    assert blocks.splits_of(4, 64, 136 // 32) == 4
    split = backend.shrink(decided(problem), problem.hidden, [problem.downs, problem.also(1)])
    assert all(close(x, y) for x, y in zip(split, whole, strict=True))
    assert close(split[0], shrunk(problem, problem.downs))


@pytest.mark.parametrize("routing", ["half unrouted", "nobody"])
@pytest.mark.parametrize(("items", "tokens_per_item"), [(8, 1), (2, 40)])
def test_every_number_of_an_output_is_written(monkeypatch, items, tokens_per_item, routing):
    sizes = {"items": items, "tokens_per_item": tokens_per_item, "ranks": (3, 5, 2), "wide": 65}
    problem = draw(slots=2, routing=routing, **sizes)
    splits_early(monkeypatch)
    assert blocks.splits_of(2, 64, 65 // 32) == 2
    new_empty = torch.Tensor.new_empty

    def poisoned(self, *args, **named):
        made = new_empty(self, *args, **named)
        return made.fill_(float("nan")) if made.is_floating_point() else made.zero_()

    clean = forward_and_backward(problem, torch.ones(len(problem.per_token), 10), 2)
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    again = forward_and_backward(problem, torch.ones(len(problem.per_token), 10), 2)
    assert all(torch.equal(x, y) and x.isfinite().all() for x, y in zip(clean, again, strict=True))


@pytest.mark.parametrize("tokens_per_item", [1, 35])
def test_an_expert_that_nobody_chose_does_not_leak(tokens_per_item):
    problem = draw(items=7, slots=2, ranks=(3, 3, 3, 3), tokens_per_item=tokens_per_item)
    kept = problem.ids.clone()
    kept[kept == 2] = -1
    problem.ids.copy_(kept)
    gradient = torch.ones(len(problem.per_token), 10)
    whole = forward_and_backward(problem, gradient, 3)
    broken = forward_and_backward(with_broken_expert(problem, 2), gradient, 3)
    assert all(torch.equal(x, y) for x, y in zip(whole, broken, strict=True))


def test_a_broken_expert_spoils_its_own_choices_only():
    problem = with_broken_expert(draw(items=30, slots=1, ranks=(3, 3, 3)), 1)
    out, of_hidden, of_weights, of_down, _ = forward_and_backward(problem, torch.ones(30, 10), 2)
    own = problem.ids[:, 0] == 1
    assert own.any()
    assert torch.equal(out.isnan().any(1), own)
    assert torch.equal(of_hidden.isnan().any(1), own)
    assert torch.equal(of_weights.isnan().any(1), own)
    assert of_down.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_numbers_are_rounded_once(dtype):
    problem = draw(items=40, slots=2, ranks=(16, 5, 8), wide=33, out=30, dtype=dtype)
    plan, bound = decided(problem), torch.finfo(dtype).eps / 2
    (low,) = backend.shrink(plan, problem.hidden, [problem.downs])
    assert low.dtype == dtype
    assert close(low, shrunk(problem, problem.downs), bound)
    out = backend.expand(plan, [low], [problem.transposed_ups])
    assert close(out, expanded(problem, [low], [problem.transposed_ups]), 2 * bound)  # one per slot


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, None])
def test_experts_of_another_dtype_are_cast_as_they_are_read(dtype):
    problem = draw(items=20, ranks=(4, 7), wide=12)
    plan = decided(problem)
    given = [
        down.to(dtype or kind)
        for down, kind in zip(problem.downs, (torch.float16, torch.float32), strict=True)
    ]
    (low,) = backend.shrink(plan, problem.hidden, [given])
    (wanted,) = backend.shrink(plan, problem.hidden, [[down.float() for down in given]])
    assert torch.equal(low, wanted)
    out = backend.expand(plan, [low], [given])
    assert out.dtype == torch.float32
    assert close(out, expanded(problem, [low], [[down.float() for down in given]]))


@pytest.mark.parametrize("slots", [1, 2])
def test_add_to_adds_in_place_to_any_view(slots):
    problem = draw(items=20, slots=slots, ranks=(4, 7, 2), wide=12, routing="half unrouted")
    plan, low = decided(problem), torch.randn(20 * slots, 7)
    added = expanded(problem, [low], [problem.downs])
    base = torch.randn(20, 40)
    for view in (lambda t: t[:, 5:17], lambda t: t[:, ::2][:, :12], lambda t: t.view(20, 2, 20)[..., 3:9]):
        whole = base.clone()
        backend.add_to(plan, low, problem.downs, view(whole))
        wanted = base.double()
        view(wanted).add_(added.view(view(wanted).shape))
        assert close(whole, wanted)
        nowhere = (problem.per_token < 0).all(1)
        assert torch.equal(whole[nowhere], base[nowhere])


def test_items_of_many_tokens_equal_their_tokens_sorted():
    problem = draw(items=4, slots=2, ranks=(3, 6, 1), tokens_per_item=40, routing="half unrouted")
    long = decided(problem)
    token_by_token = backend.plan(problem.per_token, problem.experts, 1)
    assert long.order is None and token_by_token.order is not None
    lows = [backend.shrink(plan, problem.hidden, [problem.downs])[0] for plan in (long, token_by_token)]
    assert torch.equal(*lows)
    outs = [backend.expand(plan, lows[:1], [problem.transposed_ups]) for plan in (long, token_by_token)]
    assert torch.equal(*outs)


@given(ids=st.lists(st.integers(-1, 4), max_size=700), experts=st.integers(1, 5))
@settings(max_examples=15)
def test_the_order_is_a_stable_sort(ids, experts):
    ids = torch.tensor([[i if i < experts else -1 for i in ids]], dtype=torch.int64).reshape(-1, 1)
    plan = backend.plan(ids, experts, 1)
    if len(ids) == 0:
        assert plan.order is None
        return
    groups = torch.where(ids[:, 0] < 0, experts, ids[:, 0])
    assert torch.equal(plan.order[0].long(), groups.argsort(stable=True))
    assert torch.equal(plan.sizes[0].long(), groups.bincount(minlength=plan.groups))


def test_several_blocks_are_sorted_as_one(monkeypatch):
    monkeypatch.setattr("prw.kernels.triton.planning.SORT_CELLS", 64)
    ids = torch.randint(-1, 3, (290, 2))
    plan = backend.plan(ids, 3, 1)
    groups = torch.where(ids < 0, 3, ids)
    assert torch.equal(plan.order.long(), groups.argsort(dim=0, stable=True).T)


def test_permuted_tokens_give_permuted_rows():
    problem = draw(items=33, slots=2, ranks=(4, 7, 2))
    order = torch.randperm(33)
    permuted = draw(items=33, slots=2, ranks=(4, 7, 2))
    permuted.ids.copy_(problem.ids[order])
    permuted.weights.copy_(problem.weights[order])
    permuted.hidden.copy_(problem.hidden[order])
    gradient = torch.randn(33, 10)
    straight = forward_and_backward(problem, gradient, 0)
    mixed = forward_and_backward(permuted, gradient[order], 0)
    assert all(close(x, y[order]) for x, y in zip(mixed[:3], straight[:3], strict=True))
    assert all(close(x, y) for x, y in zip(mixed[3:], straight[3:], strict=True))


def test_experts_of_any_layout_are_read_right():
    problem = draw(items=20, ranks=(4, 4, 4), wide=12)
    plan = decided(problem)
    spread = [
        torch.stack([down, down], -1).flatten(1)[:, ::2] for down in problem.downs
    ]  # no axis of stride 1
    assert close(backend.shrink(plan, problem.hidden, [spread])[0], shrunk(problem, problem.downs))
    rows = [torch.cat([down, down], 1)[:, :12] for down in problem.downs]
    assert close(backend.shrink(plan, problem.hidden, [rows])[0], shrunk(problem, problem.downs))


def test_what_cannot_be_read_by_address_is_refused():
    problem = draw()
    plan = decided(problem)
    with pytest.raises(ConfigError, match=r"1 to 64 experts.*there are 65"):
        backend.shrink(plan, problem.hidden, [problem.downs[:1] * 65])
    with pytest.raises(ConfigError, match=r"must be on cpu and 12 wide.*'cpu', 11"):
        backend.shrink(plan, problem.hidden, [[*problem.downs[:2], problem.downs[2][:, :11]]])
    with pytest.raises(ConfigError, match=r"float32, bfloat16 or float16, but came torch.float64"):
        backend.shrink(plan, problem.hidden.double(), [problem.downs])
    with pytest.raises(ConfigError, match="decision is for 9 tokens on cpu, but came 8 tokens"):
        backend.shrink(plan, problem.hidden[:8], [problem.downs])
    low = torch.zeros(9, 4)
    with pytest.raises(ConfigError, match=r"shape \(9, 4\) on cpu.*came \(8, 4\) on cpu"):
        backend.expand(plan, [low[:8]], [problem.downs])

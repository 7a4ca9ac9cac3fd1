"""Several experts per token, experts of unequal rank, and frozen experts: every kernel equals the formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prw.kernels import KERNELS, dense, reference, select
from prw.kernels.stacked import stacked_linear

SIZES = st.tuples(st.integers(0, 9), st.integers(1, 7), st.integers(1, 5))
RANKS = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def problem(sizes, ranks, k, seed, training=None):
    (tokens, wide, out), experts = sizes, len(ranks)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    k = min(k, experts)
    ids = torch.rand(tokens, experts, generator=generator).argsort(-1)[:, :k]
    ids[torch.rand(tokens, generator=generator) < 0.2] = -1
    trains = (
        [True] * experts if training is None else [bool(training >> index & 1) for index in range(experts)]
    )
    downs = [draw(rank, wide).requires_grad_(flag) for rank, flag in zip(ranks, trains, strict=True)]
    ups = [draw(out, rank).requires_grad_(flag) for rank, flag in zip(ranks, trains, strict=True)]
    return draw(tokens, wide).requires_grad_(), downs, ups, ids, draw(tokens, k).abs().requires_grad_()


def outputs_and_gradients(kernel, hidden, downs, ups, ids, weights):
    output = kernel(hidden, downs, ups, ids, weights, 1.5)
    seed = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    wanted = [tensor for tensor in (hidden, *downs, *ups, weights) if tensor.requires_grad]
    return [output, *torch.autograd.grad(output, wanted, seed)]


@given(sizes=SIZES, ranks=RANKS, k=st.integers(1, 4), seed=st.integers(0, 99))
def test_the_reference_is_the_sum_over_the_chosen(sizes, ranks, k, seed):
    hidden, downs, ups, ids, weights = problem(sizes, ranks, k, seed)
    output = reference(hidden, downs, ups, ids, weights, 1.5)
    for token, chosen in enumerate(ids.tolist()):
        wanted = torch.zeros(sizes[2], dtype=torch.float64)
        for slot, expert in enumerate(chosen):
            if expert >= 0:
                wanted += 1.5 * weights[token, slot] * (ups[expert] @ (downs[expert] @ hidden[token]))
        assert torch.allclose(output[token], wanted, atol=1e-9)


@pytest.mark.parametrize("name", sorted(set(KERNELS) - {"reference", "auto"}))
@given(sizes=SIZES, ranks=RANKS, k=st.integers(1, 4), seed=st.integers(0, 99), training=st.integers(0, 31))
def test_a_kernel_equals_the_reference_whatever_trains(name, sizes, ranks, k, seed, training):
    args = problem(sizes, ranks, k, seed, training)
    got = outputs_and_gradients(select(name), *args)
    wanted = outputs_and_gradients(reference, *args)
    assert all(torch.allclose(x, y, atol=1e-9) for x, y in zip(got, wanted, strict=True))


@given(sizes=SIZES, ranks=RANKS, seed=st.integers(0, 99))
def test_an_axis_of_one_choice_changes_no_bit(sizes, ranks, seed):
    hidden, downs, ups, ids, weights = problem(sizes, ranks, 1, seed)
    for kernel in (dense, reference):
        flat = kernel(hidden, downs, ups, ids[:, 0], weights[:, 0], 1.5)
        assert torch.equal(flat, kernel(hidden, downs, ups, ids, weights, 1.5))


@given(sizes=SIZES, ranks=RANKS, k=st.integers(1, 3), seed=st.integers(0, 99), training=st.integers(0, 31))
def test_what_trains_changes_no_bit_of_the_output(sizes, ranks, k, seed, training):
    """Else a recalled stage, all frozen, would not be the stage that trained."""
    args = problem(sizes, ranks, k, seed, training)
    frozen = problem(sizes, ranks, k, seed, 0)
    assert torch.equal(dense(*args, 1.5), dense(*frozen, 1.5))


def test_a_broken_expert_does_not_leak_into_others():
    hidden, downs, ups, ids, weights = problem((5, 3, 2), [2, 3, 1], 2, 0)
    ids[:] = torch.tensor([2, 0])
    with torch.no_grad():
        downs[1].fill_(float("inf"))
    for kernel in (dense, reference):
        assert kernel(hidden, downs, ups, ids, weights, 1.0).isfinite().all()


@pytest.mark.parametrize("dim", [0, 1])
def test_the_stacked_linear_has_right_gradients_for_what_trains_and_none_for_the_rest(dim):
    sizes = (2, 3, 1)
    weights = [torch.randn((size, 4) if dim == 0 else (4, size), dtype=torch.float64) for size in sizes]
    weights[1].requires_grad_()
    hidden = torch.randn(5, 4 if dim == 0 else sum(sizes), dtype=torch.float64, requires_grad=True)

    def run(hidden, trained):
        return stacked_linear(hidden, [weights[0], trained, weights[2]], dim)

    assert torch.equal(run(hidden, weights[1]), torch.nn.functional.linear(hidden, torch.cat(weights, dim)))
    assert torch.autograd.gradcheck(run, (hidden, weights[1]))
    assert torch.autograd.gradgradcheck(run, (hidden, weights[1]))


def test_the_whole_weights_gradient_is_never_computed_while_most_is_frozen():
    """The sizes of what backward makes: of the trained expert alone, not of all of them side by side."""
    hidden, downs, ups, ids, weights = problem((8, 6, 6), [3, 3, 3], 1, 0, training=0b100)
    made = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if "mm" in function.__name__:
                made.append(tuple(out.shape))
            return out

    output = dense(hidden, downs, ups, ids, weights, 1.0).sum()
    with Watch():
        output.backward()
    assert {(3, 6), (6, 3)} <= set(made)
    assert not {(9, 6), (6, 9)} & set(made)


def test_16_bit_autocast_gives_gradients_in_the_experts_dtype():
    hidden, downs, ups, ids, weights = problem((6, 4, 4), [2, 2], 1, 0, training=0b10)
    ids[:] = 1
    single = [tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in (*downs, *ups)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = dense(hidden.float(), single[:2], single[2:], ids, weights.float(), 1.0)
    output.float().sum().backward()
    assert single[0].grad is None
    assert single[1].grad.dtype == torch.float32
    assert single[1].grad.any()

"""Every kernel equals the reference on outputs and gradients; the reference equals the formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prw.errors import ConfigError
from prw.kernels import KERNELS, reference, select

SIZES = st.tuples(*(st.integers(low, high) for low, high in ((0, 9), (1, 7), (1, 5), (1, 4), (1, 5))))


def problem(sizes, seed, dtype=torch.float64):
    tokens, wide, out, rank, experts = sizes
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    ids = torch.randint(-1, experts, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator, dtype=dtype).requires_grad_()
    downs = [draw(rank, wide) for _ in range(experts)]
    ups = [draw(out, rank) for _ in range(experts)]
    return draw(tokens, wide), downs, ups, ids, weights


def outputs_and_gradients(kernel, hidden, downs, ups, ids, weights):
    inputs = [hidden, *downs, *ups, weights]
    output = kernel(hidden, downs, ups, ids, weights, 1.5)
    seed = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return [output, *torch.autograd.grad(output, inputs, seed)]


@pytest.mark.parametrize("name", sorted(set(KERNELS) - {"reference"}))
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_a_kernel_equals_the_reference_on_outputs_and_gradients(name, sizes, seed):
    args = problem(sizes, seed)
    got = outputs_and_gradients(select(name), *args)
    wanted = outputs_and_gradients(reference, *args)
    assert all(torch.allclose(x, y, atol=1e-12) for x, y in zip(got, wanted, strict=True))


@given(sizes=SIZES, seed=st.integers(0, 99))
def test_the_reference_is_the_formula_token_by_token(sizes, seed):
    hidden, downs, ups, ids, weights = problem(sizes, seed)
    output = reference(hidden, downs, ups, ids, weights, 1.5)
    for token, expert in enumerate(ids.tolist()):
        if expert < 0:
            assert not output[token].any()
        else:
            wanted = 1.5 * weights[token] * (ups[expert] @ (downs[expert] @ hidden[token]))
            assert torch.allclose(output[token], wanted, atol=1e-12)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_gradients_are_right(name):
    hidden, downs, ups, ids, weights = problem((4, 3, 2, 2, 3), 1)

    def run(hidden, weights, *pairs):
        return select(name)(hidden, pairs[:3], pairs[3:], ids, weights, 0.5)

    assert torch.autograd.gradcheck(run, (hidden, weights, *downs, *ups))


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_an_expert_nobody_chose_gets_zeros_not_nothing(name):
    hidden, downs, ups, ids, weights = problem((5, 3, 2, 2, 3), 0)
    ids[:] = 1
    select(name)(hidden, downs, ups, ids, weights, 1.0).sum().backward()
    assert all(not weight.grad.any() for weight in (downs[0], ups[0], downs[2], ups[2]))
    assert downs[1].grad.any()


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_a_broken_expert_does_not_leak_into_others(name):
    hidden, downs, ups, ids, weights = problem((5, 3, 2, 2, 2), 0)
    ids[:] = 0
    with torch.no_grad():
        downs[1].fill_(float("inf"))
    assert select(name)(hidden, downs, ups, ids, weights, 1.0).isfinite().all()


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_a_16_bit_input_is_computed_in_the_experts_dtype(name):
    hidden, downs, ups, ids, weights = problem((5, 3, 2, 2, 2), 0, torch.float32)
    low = select(name)(hidden.bfloat16(), downs, ups, ids, weights, 1.0)
    high = select(name)(hidden.bfloat16().float(), downs, ups, ids, weights, 1.0)
    assert low.dtype == torch.float32
    assert torch.equal(low, high)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ConfigError, match="no kernel 'fast'; kernels are auto, dense, reference"):
        select("fast")

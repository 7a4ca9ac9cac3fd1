"""The operator of compiled graphs: what torch asks of an operator, and the reference's numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prw.kernels.custom_op import custom_op, routed
from prw.kernels.reference import reference
from tests.prw.kernels.problems import ALIGNED, SHAPES, problem

WAYS = ("dense", "grouped")


def arguments(made, kernel, fixed):
    """What the operator takes, of the first projection of a problem."""
    part = made.projections[0]
    ids, weights = (x if x.dim() == 2 else x.unsqueeze(-1) for x in (made.ids, made.weights))
    return made.hidden, list(part.downs), list(part.ups), ids, weights, part.scale, kernel, made.tokens, fixed


def in_order(hidden, downs, ups, ids, weights, scale, kernel, tokens, fixed):
    return hidden, ids, weights, downs, ups, scale, tokens, kernel, fixed


@pytest.mark.parametrize("kernel", WAYS)
@pytest.mark.parametrize(
    "case",
    [
        {"ranks": (3, 3)},
        {"ranks": (4, 2, 1), "k": 2},
        {"ranks": (3,), "tokens": 3},
        {"ranks": (2, 2, 2), "trains": 0b100},
        {"skew": "nobody"},
        {"layout": "transposed", "k": 0},
    ],
    ids=str,
)
def test_torch_finds_no_fault_in_the_operator(kernel, case):
    made = problem(seed=3, base="none", **case)
    hidden, downs, ups, ids, weights, *rest = arguments(made, kernel, fixed=True)
    weights = weights.detach().requires_grad_()  # opcheck reads the gradients of leaves alone
    torch.library.opcheck(routed, in_order(hidden, downs, ups, ids, weights, *rest))


@pytest.mark.parametrize("kernel", WAYS)
@pytest.mark.parametrize("shapes", [SHAPES, ALIGNED], ids=["any", "aligned"])
def test_the_operator_gives_the_references_numbers_and_gradients(kernel, shapes):
    @settings(max_examples=40)
    @given(shapes, st.booleans())
    def check(drawn, fixed):
        made = problem(**drawn)
        part, (grad, *_) = made.projections[0], made.seeds
        leaves = [made.hidden, made.weights, *part.downs, *part.ups]
        leaves = [leaf for leaf in leaves if leaf.requires_grad]
        got = custom_op(*arguments(made, kernel, fixed))
        ids, weights = (x.repeat_interleave(made.tokens, 0) for x in (made.ids, made.weights))
        wanted = reference(made.hidden, part.downs, part.ups, ids, weights, part.scale)
        pairs = zip(
            [got, *torch.autograd.grad(got, leaves, grad)],
            [wanted, *torch.autograd.grad(wanted, leaves, grad, materialize_grads=True)],
            strict=True,
        )
        for ours, truth in pairs:
            torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)

    check()

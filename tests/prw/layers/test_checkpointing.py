"""Checkpointed forwards under several `with` blocks: backward runs them again as they were, or refuses."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import prw


@pytest.fixture
def woven(make_plain, wake):
    model = make_plain(blocks=1)
    weave = prw.inject(model, rank=2, experts=["a", "b", "c"])
    wake(weave)
    return model, weave


def gradients(weave):
    found = [
        parameter.grad.clone() for parameter in weave.trainable_parameters() if parameter.grad is not None
    ]
    assert any(gradient.any() for gradient in found)
    return found


def masks():
    first = torch.rand(2, 5) > 0.5
    return first, ~first


@pytest.mark.parametrize("reentrant", [False, True])
def test_two_forwards_under_unlike_blocks_are_refused_and_not_mixed(woven, reentrant):
    model, weave = woven
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    first, second = masks()
    with weave.route_only(first):
        one = checkpoint(model.blocks[0], hidden, use_reentrant=reentrant)
    with weave.route_only(second):
        two = checkpoint(model.blocks[0], hidden, use_reentrant=reentrant)
        with pytest.raises(prw.RoutingError, match="before the forward of another one"):
            (one.sum() + two.sum()).backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_one_after_the_other_trains_as_without_checkpointing(woven, reentrant):
    model, weave = woven
    model.eval()
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    for mask in masks():
        found = []
        for run in (model.blocks[0], lambda x: checkpoint(model.blocks[0], x, use_reentrant=reentrant)):
            model.zero_grad()
            with weave.route_only(mask):
                loss = run(hidden).square().sum()  # that of the last round is alive until here
                loss.backward()
            found.append(gradients(weave))
        assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


@pytest.mark.parametrize("last", [False, True])
def test_a_reference_pass_without_gradient_does_not_matter(woven, last):
    model, weave = woven
    model.eval()
    hidden = torch.randn(2, 5, 8, requires_grad=True)

    def reference():
        with torch.no_grad(), weave.disabled():
            return checkpoint(model.blocks[0], hidden, use_reentrant=False), model(hidden)

    def loss(run):
        before = None if last else reference()[0]
        output = run(hidden)
        return (output - (reference()[0] if last else before)).square().sum()

    loss(model).backward()
    expected = gradients(weave)
    model.zero_grad()
    loss(lambda x: checkpoint(model.blocks[0], x, use_reentrant=False)).backward()
    assert all(torch.equal(x, y) for x, y in zip(gradients(weave), expected, strict=True))


def test_an_unlike_forward_outside_checkpointing_or_dropped_does_not_matter(woven):
    model, weave = woven
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    first, second = masks()
    with weave.route_only(first):
        checkpoint(model.blocks[0], hidden, use_reentrant=False)  # a step that is skipped
    with weave.disabled():
        other = model(hidden)
    with weave.route_only(second):
        output = checkpoint(model.blocks[0], hidden, use_reentrant=False)
        (output.sum() + other.sum()).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(weave))


def test_another_block_that_asks_for_the_same_will_do(woven):
    model, weave = woven
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    with weave.as_of("b"):
        output = checkpoint(model.blocks[0], hidden, use_reentrant=False)
    with weave.as_of("b"):
        output.sum().backward()
    with weave.disabled():
        output = checkpoint(model.blocks[0], hidden, use_reentrant=False)
    with pytest.raises(prw.RoutingError, match="inside that block"):
        output.sum().backward()


def test_compiled_blocks_under_checkpointing_are_counted_once_inside_the_record(woven):
    model, weave = woven
    model.eval()
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    found, counted = [], []
    for block in (model.blocks[0], torch.compile(model.blocks[0], backend="aot_eager")):
        model.zero_grad()
        with weave.record() as routing:
            loss = checkpoint(block, hidden, use_reentrant=False).square().mean()
            (loss + prw.veteran_loss(routing, rho=0.8, alpha=0.5)).backward()
        found.append(gradients(weave))
        counted.append([len(decisions) for decisions in routing.decisions.values()])
    assert counted == [[1], [1]]
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(*found, strict=True))

"""Open `with` blocks: one thread at a time, closed in any order, and never left behind."""

import copy
import threading

import pytest
import torch

import prw


@pytest.fixture
def weave(make_plain, wake):
    weave = prw.inject(make_plain().eval(), rank=2, experts=["a", "b", "c"])
    wake(weave)
    return weave


def in_a_thread(work):
    """Run something in a thread of its own and give what it raised."""
    raised = []

    def run():
        try:
            work()
        except prw.PrwError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised


def test_another_thread_may_not_open_a_block_and_leaves_nothing_behind(weave):
    hidden = torch.randn(1, 5, 8)
    expected = weave.model(hidden)

    def enter(block):
        with block:
            pass

    for outer in (weave.as_of("b"), weave.record(), weave.disabled()):
        with outer:
            inside = weave.model(hidden)
            for inner in (weave.as_of("a"), weave.disabled(), weave.route_only(torch.ones(1, 5).bool())):
                (error,) = in_a_thread(lambda inner=inner: enter(inner))
                assert "another thread" in str(error)
            assert torch.equal(weave.model(hidden), inside)
        assert torch.equal(weave.model(hidden), expected)
        assert weave.pool.recorder is None
    assert in_a_thread(lambda: enter(weave.as_of("a"))) == []


def test_blocks_closed_in_the_order_they_were_opened_end_both(weave):
    hidden = torch.randn(1, 5, 8)
    whole = weave.model(hidden)
    with weave.as_of("a"):
        as_of_a = weave.model(hidden)
    first, second = weave.disabled(), weave.as_of("a")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(weave.model(hidden), as_of_a)
    second.__exit__(None, None, None)
    assert torch.equal(weave.model(hidden), whole)


def test_a_copy_made_inside_a_block_is_whole(weave):
    hidden = torch.randn(1, 5, 8)
    expected = weave.model(hidden)
    with weave.disabled(), weave.record():
        twin = copy.deepcopy(weave.model)
    assert torch.equal(twin(hidden), expected)
    with prw.Weave(twin).record() as routing:
        twin(hidden)
    assert routing.usage().shape == (2, 3)


def test_an_input_changed_in_place_gets_a_decision_of_its_own(weave):
    key, value = weave.model.blocks[0].to_k, weave.model.blocks[0].to_v
    hidden = torch.randn(2, 16, 8)
    with torch.no_grad(), weave.record() as routing:
        key(hidden)
        hidden.neg_()
        changed = value(hidden)
        key(hidden.clone())
        assert torch.equal(changed, value(hidden.clone()))
    before, after, *_ = routing.decisions["blocks.0"]
    assert torch.equal(after.logits, -before.logits)
    with torch.inference_mode(), weave.record() as routing:
        hidden = hidden.clone()
        key(hidden)
        value(hidden)
    assert len(routing.decisions["blocks.0"]) == 1


def test_blocks_can_be_opened_inside_a_compiled_function(weave):
    hidden = torch.randn(1, 5, 8)

    def both(hidden):
        with weave.as_of("a"):
            narrowed = weave.model(hidden)
        return narrowed, weave.model(hidden)

    compiled = torch.compile(both, fullgraph=True, backend="eager")
    with weave.record():
        found = compiled(hidden)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(found, both(hidden), strict=True))

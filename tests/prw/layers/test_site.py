"""One decision per site: shared by K and V, counted once, also under checkpointing, compile and threads."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import prw


@pytest.fixture
def woven(make_plain, wake):
    model = make_plain()
    weave = prw.inject(model, rank=2, experts=["a", "b", "c"])
    wake(weave)
    return model, weave


def projections(model, block=0):
    return model.blocks[block].to_k, model.blocks[block].to_v


def test_key_and_value_share_one_noisy_decision(woven):
    model, weave = woven
    hidden = torch.randn(2, 64, 8)
    key, value = projections(model)
    with pytest.warns(UserWarning, match="at blocks.1 neither"), weave.record() as routing:
        key(hidden)
        value(hidden)
    (decision,) = routing.decisions["blocks.0"]
    with weave.record() as routing:
        key(hidden)
    assert not torch.equal(routing.decisions["blocks.0"][0].logits, decision.logits), "training draws noise"
    assert key.sites["default"] is value.sites["default"]


def test_another_input_gets_another_decision(woven):
    model, weave = woven
    model.eval()
    key, value = projections(model)
    hidden = torch.randn(2, 5, 8)
    with weave.record() as routing:
        key(hidden)
        value(hidden.clone())
        value(hidden)
        key(hidden)
        key(hidden)
        key(hidden)
    assert len(routing.decisions["blocks.0"]) == 5
    expected = routing.decisions["blocks.0"][0].logits
    assert all(torch.equal(d.logits, expected) for d in routing.decisions["blocks.0"])


def test_nothing_is_left_behind(woven):
    model, _ = woven
    hidden = torch.randn(2, 5, 8)
    seen = weakref.ref(hidden)
    model(hidden).sum().backward()
    del hidden
    gc.collect()
    assert seen() is None, "neither a decision nor its input"


def test_a_decision_made_without_gradient_is_not_reused_with_one(woven):
    model, _ = woven
    key, value = projections(model.eval())
    hidden = torch.randn(2, 5, 8)
    with torch.no_grad():
        key(hidden)
    output = value(hidden)
    output.sum().backward()
    assert key.prw_gate2["default"].weight.grad is not None


def test_value_alone_and_value_first_work(woven):
    model, weave = woven
    model.eval()
    key, value = projections(model)
    hidden = torch.randn(5, 8)
    both = key(hidden), value(hidden)
    swapped = value(hidden), key(hidden)
    assert torch.equal(both[0], swapped[1])
    assert torch.equal(both[1], swapped[0])
    weave.eject()
    alone = prw.inject(model, target="v", rank=2, experts=["a"])
    assert [site.modules for site in alone.sites] == [("blocks.0.to_v",), ("blocks.1.to_v",)]
    with alone.record() as routing:
        model(torch.randn(2, 5, 8))
    assert routing.share() == 1.0


def loss_and_gradients(model, weave, hidden, **options):
    torch.manual_seed(3)
    model.zero_grad()
    with weave.record() as routing:
        out = hidden
        for block in model.blocks:
            out = checkpoint(block, out, **options) if options else block(out)
        loss = out.square().mean()
        if options.get("use_reentrant") is not True:
            loss = loss + prw.veteran_loss(routing, rho=0.8, alpha=0.5)
        loss.backward()  # inside, where a recompute could be recorded
    counted = sum(len(decisions) for decisions in routing.decisions.values())
    return loss, [p.grad.clone() for p in weave.trainable_parameters()], counted


def test_checkpointing_changes_nothing_and_counts_once(woven):
    model, weave = woven
    hidden = torch.randn(2, 5, 8)
    loss, gradients, counted = loss_and_gradients(model, weave, hidden)
    again, same, once = loss_and_gradients(model, weave, hidden, use_reentrant=False)
    assert counted == once == 2
    assert torch.equal(loss, again)
    assert all(torch.equal(x, y) for x, y in zip(gradients, same, strict=True))


def test_reentrant_checkpointing_counts_once_and_says_that_the_share_has_no_gradient(woven):
    model, weave = woven
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    loss, _, counted = loss_and_gradients(model, weave, hidden, use_reentrant=True)
    torch.manual_seed(3)
    model.zero_grad()
    expected = model(hidden).square().mean()
    assert counted == 2
    assert torch.equal(loss, expected)
    with weave.record() as routing:
        checkpoint(model.blocks[0], hidden, use_reentrant=True)
    assert 0.0 <= routing.share() <= 1.0
    with pytest.raises(prw.RoutingError, match="use_reentrant=False"):
        prw.veteran_loss(routing, rho=0.8, alpha=0.5)


def test_reentrant_gradients_are_those_without_checkpointing(woven):
    model, weave = woven
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    _, gradients, _ = loss_and_gradients(model, weave, hidden, use_reentrant=True)
    torch.manual_seed(3)
    model.zero_grad()
    model(hidden).square().mean().backward()
    expected = [p.grad for p in weave.trainable_parameters()]
    assert all(torch.equal(x, y) for x, y in zip(gradients, expected, strict=True))


def test_a_recompute_outside_its_block_is_refused(woven):
    model, weave = woven
    hidden, mask = torch.randn(2, 5, 8), torch.rand(2, 5) > 0.5
    with weave.route_only(mask):
        out = checkpoint(model.blocks[0], hidden, use_reentrant=False)
    with pytest.raises(prw.RoutingError, match="inside that block"):
        out.sum().backward()
    with weave.route_only(mask):
        checkpoint(model.blocks[0], hidden, use_reentrant=False).sum().backward()


@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_compile_shares_records_and_agrees(make_plain, wake, granularity):
    model = make_plain(blocks=1).eval()
    weave = prw.inject(model, rank=2, experts=["a", "b"], granularity=granularity)
    wake(weave)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    hidden = torch.randn(2, 5, 8)
    with weave.record() as eager:
        expected = model(hidden)
    with weave.record() as traced:
        output = compiled(hidden)
    assert torch.allclose(output, expected, atol=1e-6)
    assert traced.share() == eager.share()
    assert [len(decisions) for decisions in traced.decisions.values()] == [1]
    prw.veteran_loss(traced, rho=0.5, alpha=1.0).backward()
    assert torch.allclose(compiled(hidden), expected, atol=1e-6)
    output = compiled(hidden)
    output.sum().backward()
    with weave.as_of("a"):
        assert torch.allclose(compiled(hidden), model(hidden), atol=1e-6)


def test_compile_in_training_draws_one_noise_for_key_and_value(make_plain, wake):
    model = make_plain(width=8, blocks=1)
    weave = prw.inject(model, rank=2, experts=["a", "b"])
    wake(weave)
    with torch.no_grad():
        for layer in projections(model):
            layer.base_layer.weight.zero_()
            layer.base_layer.bias.zero_()
            layer.prw_A0["default"].weight.copy_(layer.prw_A1["default"].weight)
            layer.prw_B0["default"].weight.zero_()

    def both(hidden):
        return model.blocks[0].to_k(hidden), model.blocks[0].to_v(hidden)

    key, value = torch.compile(both, fullgraph=True, backend="aot_eager")(torch.randn(1, 64, 8))
    on_key, on_value = key.abs().sum(-1) > 0, value.abs().sum(-1) > 0
    assert torch.equal(on_key, on_value)
    assert 0 < int(on_key.sum()) < 64


def test_threads_do_not_mix_decisions(woven):
    model, _ = woven
    model.eval()
    inputs = [torch.randn(1, 3 + index, 8) for index in range(4)]
    expected = [model(hidden) for hidden in inputs]
    wrong = []

    def work(index):
        for _ in range(20):
            if not torch.equal(model(inputs[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_copies_and_pickles_leave_the_decision_in_flight(woven):
    model, _ = woven
    key, _ = projections(model.eval())
    hidden = torch.randn(2, 5, 8)
    key(hidden)  # leaves a decision for the value
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin_key, twin_value = projections(twin)
        with prw.Weave(twin).record() as routing:
            twin_value(hidden)
        assert len(routing.decisions["blocks.0"]) == 1, "made anew"
        assert twin_key.sites["default"] is twin_value.sites["default"]
        assert torch.equal(twin(hidden), model(hidden))


def test_a_mask_of_another_shape_is_refused(woven):
    model, weave = woven
    with weave.route_only(torch.ones(2, 4, dtype=torch.bool)), pytest.raises(prw.RoutingError, match="2, 4"):
        model(torch.randn(2, 5, 8))
    with pytest.raises(prw.ConfigError, match="mask of bools"), weave.route_only(torch.ones(2, 5)):
        pass


@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_tokens_outside_the_mask_get_the_base_and_are_not_counted(make_plain, wake, granularity):
    model = make_plain(blocks=1).eval()
    weave = prw.inject(model, rank=2, experts=["a", "b"], granularity=granularity)
    wake(weave)
    hidden = torch.randn(3, 5, 8)
    mask = torch.rand(3, 5) > 0.4
    mask[2] = False
    key = model.blocks[0].to_k
    base = key(hidden, routed=False)
    with weave.route_only(mask), weave.record() as routing:
        output = key(hidden)
    changed = (output != base).any(-1)
    assert torch.equal(
        changed, mask if granularity == "token" else mask.any(1, keepdim=True).expand(3, 5) & changed
    )
    assert not changed[2].any()
    (decision,) = routing.decisions["blocks.0"]
    counted = mask if granularity == "token" else mask.any(1, keepdim=True)
    assert torch.equal(decision.expert_ids >= 0, counted)
    hidden[~mask] += 1.0
    with weave.route_only(mask):
        moved = key(hidden)
    assert torch.equal(moved[mask], output[mask]), "what is not routed does not steer what is"


def test_recording_twice_at_once_and_an_empty_pool_are_refused(make_plain):
    model = make_plain()
    weave = prw.inject(model, rank=2)
    with pytest.raises(prw.PoolError, match="empty"), weave.record():
        pass
    weave.add_expert("a")
    with weave.record(), pytest.raises(prw.PoolError, match="already"), weave.record():
        pass
    with weave.record() as routing, pytest.raises(prw.RoutingError, match="no routing decision"):
        routing.share()

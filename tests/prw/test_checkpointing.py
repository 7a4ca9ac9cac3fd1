"""Checkpointing as the hosts switch it on: same loss, same gradients, decisions counted once, same noise."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import prw


def step(host, weave, veteran=True):
    """A loss, its gradients, how often each site was counted, and the share."""
    torch.manual_seed(9)
    host.model.zero_grad()
    with weave.record() as routing:
        loss = host().square().mean()
        if veteran:
            loss = loss + prw.veteran_loss(routing, rho=0.8, alpha=0.5)
        loss.backward()  # inside, where a recompute could be recorded
    counted = [len(decisions) for decisions in routing.decisions.values()]
    gradients = [p.grad.clone() for p in weave.trainable_parameters()]
    return loss.detach(), gradients, counted, routing.share()


def switch_on(host, name, reentrant):
    """Checkpointing by the host's own switch; the reentrant kind wants an input with a gradient."""
    if name == "flux":
        host.model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=reentrant))
        host.inputs["hidden_states"].requires_grad_(reentrant)
    else:
        host.model.activation_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            host.model.enable_input_require_grads()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("name", ["flux", "bert", "llama"])
def test_the_hosts_own_checkpointing_changes_nothing(make_host, wake, name, granularity, reentrant):
    if (name, granularity) == ("llama", "sample"):
        granularity = "token"  # a causal model routes by token only
    host = make_host(name)
    host.model.train()  # with noise, which a recompute must draw again
    for module in host.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    weave = prw.inject(host.model, rank=2, experts=["a", "b"], granularity=granularity)
    wake(weave)
    veteran = not reentrant  # whose forward has no graph, so that this loss is refused
    loss, gradients, counted, share = step(host, weave, veteran)
    switch_on(host, name, reentrant)
    again, same, once, as_much = step(host, weave, veteran)
    assert counted == once == [1] * host.sites
    assert share == as_much
    assert torch.equal(loss, again)
    assert all(torch.equal(x, y) for x, y in zip(gradients, same, strict=True))
    assert any(gradient.any() for gradient in gradients)
    if reentrant:
        with pytest.raises(prw.RoutingError, match="use_reentrant=False"):
            step(host, weave, veteran=True)


def test_noise_is_what_is_replayed(make_plain, wake):
    model = make_plain(blocks=1).train()
    weave = prw.inject(model, rank=2, experts=["a", "b"])
    wake(weave)
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    found = []
    for preserve in (True, False):
        torch.manual_seed(9)
        model.zero_grad()
        run = partial(checkpoint, use_reentrant=False, preserve_rng_state=preserve)
        run(model, hidden).square().mean().backward()
        found.append([parameter.grad.clone() for parameter in weave.trainable_parameters()])
    replayed, anew = found
    assert not all(torch.equal(x, y) for x, y in zip(replayed, anew, strict=True)), "this test can tell"

"""Checkpointing as the hosts switch it on: same loss, same gradients, decisions counted once."""

import pytest
import torch

import prw

# transformers and peft disagree about the name of this property; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def step(host, weave):
    torch.manual_seed(9)
    host.model.zero_grad()
    with weave.record() as routing:
        loss = host().square().mean()
        loss = loss + prw.veteran_loss(routing, rho=0.8, alpha=0.5)
        loss.backward()  # inside, where a recompute could be recorded
    counted = [len(decisions) for decisions in routing.decisions.values()]
    return loss.detach(), [p.grad.clone() for p in weave.trainable_parameters()], counted


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("name", ["flux", "bert"])
def test_the_hosts_own_checkpointing_changes_nothing(make_host, wake, name, granularity):
    host = make_host(name)
    host.model.train()
    for module in host.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    weave = prw.inject(host.model, rank=2, experts=["a", "b"], granularity=granularity)
    wake(weave)
    loss, gradients, counted = step(host, weave)
    switch = {"flux": "enable_gradient_checkpointing", "bert": "activation_checkpointing_enable"}[name]
    getattr(host.model, switch)()
    again, same, once = step(host, weave)
    assert counted == once == [1] * host.sites
    assert torch.equal(loss, again)
    assert all(torch.equal(x, y) for x, y in zip(gradients, same, strict=True))
    assert any(gradient.any() for gradient in gradients)

"""The router's noise comes from torch's generator: seeded, in training alone, and restored with its state."""

import pytest
import torch

import prw


@pytest.fixture
def noisy(make_plain, wake):
    model = make_plain().train()
    weave = prw.inject(model, rank=2, experts=["a", "b", "c"])
    wake(weave)
    return model, weave, torch.randn(2, 5, 8)


def logits(model, weave, hidden):
    with weave.record() as routing:
        model(hidden)
    return torch.cat([decision.logits.detach() for decision in routing.all()])


def test_training_draws_from_torchs_generator_and_repeats_after_its_seed(noisy):
    torch.manual_seed(1)
    first, second = logits(*noisy), logits(*noisy)
    assert not torch.equal(first, second), "every forward has noise of its own"
    torch.manual_seed(1)
    assert torch.equal(logits(*noisy), first)


def test_the_state_of_torchs_generator_is_all_that_a_resumed_run_needs(noisy):
    logits(*noisy)
    state = torch.get_rng_state()
    wanted = logits(*noisy)
    torch.set_rng_state(state)
    assert torch.equal(logits(*noisy), wanted)


def test_evaluation_is_never_noisy(noisy):
    model, weave, hidden = noisy
    model.eval()
    before = torch.get_rng_state()
    assert torch.equal(logits(model, weave, hidden), logits(model, weave, hidden))
    assert torch.equal(torch.get_rng_state(), before)

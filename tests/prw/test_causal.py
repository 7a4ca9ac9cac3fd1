"""Causal language models: the past never sees the future, and cached generation equals the full forward."""

import pytest
import torch

import prw


@pytest.fixture
def woven(make_host, wake):
    host = make_host("llama")
    host.model.eval()
    wake(prw.inject(host.model, rank=4, experts=["a", "b", "c"]))
    return host


def test_a_later_token_changes_nothing_before_it(woven):
    before = woven()
    woven.inputs["input_ids"] = woven.inputs["input_ids"].clone()
    woven.inputs["input_ids"][:, -1] = (woven.inputs["input_ids"][:, -1] + 1) % 40
    after = woven()
    assert torch.equal(after[:, :-1], before[:, :-1])
    assert not torch.equal(after[:, -1], before[:, -1])


def test_cached_generation_equals_the_full_forward(woven):
    ids = woven.inputs["input_ids"]
    full = woven.model(ids).logits
    cache, steps = None, []
    for position in range(ids.shape[1]):
        out = woven.model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    assert torch.allclose(torch.cat(steps, dim=1), full, atol=1e-5)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = woven.model.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, woven.model.generate(ids, use_cache=False, **options))


def test_routing_whole_samples_would_see_the_future_and_is_refused(make_host):
    model = make_host("llama").model
    with pytest.raises(prw.ConfigError, match="see the future"):
        prw.inject(model, granularity="sample")
    assert not hasattr(model, "peft_config")

"""Routing by the whole sample is refused wherever a token must not see later ones, and only there."""

import pytest
import torch
from torch import nn
from transformers import LlamaForSequenceClassification, LlamaModel, T5Config, T5EncoderModel

import prw

SAMPLE = {"rank": 2, "granularity": "sample", "experts": ["a"]}


def held(host):
    model = nn.Module()
    model.language, model.vision = host.model, nn.MultiheadAttention(4, 1)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda host: host.model,
        lambda host: LlamaModel(host.model.config),
        lambda host: LlamaForSequenceClassification(host.model.config),
        held,
    ],
    ids=["generates", "backbone", "classifier", "held"],
)
def test_causal_attention_is_refused_whatever_is_around_it(make_host, make):
    model = make(make_host("llama"))
    with pytest.raises(prw.ConfigError, match=r"Llama\w+ around .*k_proj is causal"):
        prw.inject(model, **SAMPLE)
    assert not hasattr(model, "peft_config")
    assert prw.inject(model, rank=2, experts=["a"]).sites


def test_what_sees_the_whole_sequence_is_not_refused(make_host, make_plain):
    for name in ("flux", "bert", "vit"):
        assert prw.inject(make_host(name).model, **SAMPLE).sites
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    assert prw.inject(T5EncoderModel(config), **SAMPLE).sites
    both = nn.Module()
    both.language, both.vision = make_host("llama").model, make_plain()
    weave = prw.inject(both, target=r"vision\..*\.to_[kv]", **SAMPLE)
    assert len(weave.sites) == 2
    assert both.vision(torch.randn(2, 3, 8)).isfinite().all()

"""target="all-linear": whole layers, fused ones too; what was trained is what is saved and loaded."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn

import prw

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

POOL = {"rank": 2, "experts": ["a", "b"]}
SMALL = {"vocab_size": 40, "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
FUSED = {
    "gpt2": ("GPT2LMHeadModel", transformers.GPT2Config(vocab_size=40, n_layer=2, n_embd=16, n_head=2)),
    "neox": ("GPTNeoXForCausalLM", transformers.GPTNeoXConfig(**SMALL, intermediate_size=24)),
    "bloom": (
        "BloomForCausalLM",
        transformers.BloomConfig(vocab_size=40, n_layer=2, hidden_size=16, n_head=2),
    ),
    "phi3": (
        "Phi3ForCausalLM",
        transformers.Phi3Config(**SMALL, intermediate_size=24, pad_token_id=0, num_key_value_heads=2),
    ),
    "falcon": ("FalconForCausalLM", transformers.FalconConfig(**SMALL, alibi=False)),
    "deberta": ("DebertaModel", transformers.DebertaConfig(**SMALL, intermediate_size=24)),
}


@pytest.fixture(params=FUSED)
def fused(request):
    """A maker of tiny models with a fused projection and the same weights, and how to run one."""
    kind, config = FUSED[request.param]
    base = getattr(transformers, kind)(config).eval()
    tokens = torch.randint(1, 40, (2, 6))

    def make():
        model = type(base)(config).eval()
        model.load_state_dict(base.state_dict())
        return model

    return make, lambda model: model(input_ids=tokens)[0]


def test_what_was_trained_is_what_is_saved_and_loaded(fused, wake, tmp_path):
    make, run = fused
    wrapped = get_peft_model(make(), prw.PrwConfig(target_modules="all-linear", **POOL)).eval()
    weave = prw.Weave(wrapped)
    wake(weave)
    expected = run(wrapped)
    wrapped.save_pretrained(tmp_path / "peft")
    weave.save_pretrained(tmp_path / "prw")
    for folder in ("peft", "prw"):
        loaded = PeftModel.from_pretrained(make(), tmp_path / folder).eval()
        assert torch.equal(run(loaded), expected)
        model = make()
        assert prw.load(model, tmp_path / folder).sites == weave.sites
        assert torch.equal(run(model), expected)
    saved = json.loads((tmp_path / "prw" / "adapter_config.json").read_text())
    assert (saved["resolved_from"], saved["rows"]) == ("all-linear", "all")
    again = prw.Weave(get_peft_model(make(), prw.PrwConfig.from_pretrained(tmp_path / "prw")))
    assert again.sites == weave.sites, "what was saved asks for the same when it is injected anew"


def test_layers_choose_among_all_linear_layers(fused, tmp_path):
    make, _ = fused
    everywhere = [
        path for site in prw.inject(make(), target="all-linear", **POOL).sites for path in site.modules
    ]
    only = [path for path in everywhere if ".1." in path]
    assert 0 < len(only) < len(everywhere)
    weave = prw.inject(make(), target="all-linear", layers=1, **POOL)
    assert [path for site in weave.sites for path in site.modules] == only
    weave.save_pretrained(tmp_path)
    assert prw.load(make(), tmp_path).sites == weave.sites
    config = prw.PrwConfig(target_modules="all-linear", layers_to_transform=[1], **POOL)
    wrapped = get_peft_model(make(), config)
    assert prw.Weave(wrapped).sites == weave.sites
    with pytest.raises(prw.TargetError, match="index 7"):
        prw.inject(make(), target="all-linear", layers=[1, 7], **POOL)


def test_layers_and_whole_names_must_agree(make_plain):
    model = make_plain()
    with pytest.raises(prw.TargetError, match=r"blocks\.1\.to_k, which is in none of the layers.*\[0\]"):
        prw.inject(model, target=["blocks.0.to_k", "blocks.1.to_k"], layers=[0], **POOL)
    assert not hasattr(model, "peft_config")


def test_exclude_and_the_output_head_are_left_out(fused):
    make, _ = fused
    model = make()
    head = model.get_output_embeddings()
    everywhere = prw.inject(make(), target="all-linear", **POOL)
    last = everywhere.sites[0].modules[0].rpartition(".")[2]
    weave = prw.inject(model, target="all-linear", exclude=last, **POOL)
    paths = [path for site in weave.sites for path in site.modules]
    assert 0 < len(paths) < len(everywhere.config.target_modules)
    assert not any(path.endswith(f".{last}") for path in paths)
    assert model.get_output_embeddings() is head


def test_a_layer_that_cannot_carry_experts_is_named_before_anything_changes():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    with pytest.raises(prw.TargetError, match=r"0\.self_attn\.out_proj too.*exclude='out_proj'"):
        prw.inject(model, target="all-linear", **POOL)
    assert not hasattr(model, "peft_config")
    config = prw.PrwConfig(target_modules="all-linear", exclude_modules=["out_proj"], **POOL)
    weave = prw.Weave(get_peft_model(model, config))
    assert [site.name for site in weave.sites] == ["0.linear1", "0.linear2"]


def test_layers_whose_weight_alone_is_read_are_left_out():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, hidden):
            return nn.functional.linear(self.first(hidden), self.second.weight)

    weave = prw.inject(nn.Sequential(Reads()), target="all-linear", **POOL)
    assert [site.name for site in weave.sites] == ["0.first"]


def test_a_layout_for_whole_layers_is_a_contradiction(make_plain):
    with pytest.raises(prw.ConfigError, match=r"layout='q\|k\|v'.*every row"):
        prw.inject(make_plain(), target="all-linear", layout="q|k|v", **POOL)
    with pytest.raises(prw.ConfigError, match='rows is "kv", "k", "v" or "all"'):
        prw.PrwConfig(rows="q")


def test_rows_all_asks_for_named_layers_whole(fused):
    make, _ = fused
    everything = prw.Weave(get_peft_model(make(), prw.PrwConfig(target_modules="all-linear", **POOL)))
    names = everything.config.target_modules
    named = prw.Weave(get_peft_model(make(), prw.PrwConfig(target_modules=names, rows="all", **POOL)))
    assert named.sites == everything.sites

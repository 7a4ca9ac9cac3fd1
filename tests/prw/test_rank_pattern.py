"""Ranks, alphas and dropout by projection: PEFT's rules, checked, saved, and equal to PEFT's own LoRA."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

import prw
from prw.config import PoolSettings

PATTERNS = {"rank_pattern": {"to_v": 3, "0.to_k": 1}, "alpha_pattern": {"1.to_v": 12.0}}


def rank_of(base, block, projection, expert=0):
    return getattr(base.blocks[block], projection).get_submodule(f"prw_A{expert}")["default"].weight.shape[0]


def test_ranks_follow_the_pattern_for_every_expert(make_plain, tmp_path):
    base = make_plain()
    weave = prw.inject(base, rank=4, experts=["a"], **PATTERNS)
    weave.add_expert("b")
    for expert in (0, 1):
        ranks = [rank_of(base, block, name, expert) for block in (0, 1) for name in ("to_k", "to_v")]
        assert ranks == [1, 3, 4, 3]
    assert [base.blocks[b].to_v.scales["default"] for b in (0, 1)] == [2.0, 4.0]
    weave.save_pretrained(tmp_path)
    weave.eject()
    assert prw.load(base, tmp_path).settings == weave_settings(rank=4)
    assert rank_of(base, 0, "to_k", 1) == 1


def test_a_projection_says_its_own_rank(make_plain):
    """Diffusers counts these to name a LoRA, and hosts show them."""
    base = make_plain()
    prw.inject(base, rank=4, experts=["a"], **PATTERNS)
    prw.inject(base, rank=2, adapter="second", target=["to_k"])
    assert [getattr(block, name).r for block in base.blocks for name in ("to_k", "to_v")] == [
        {"default": 1, "second": 2},
        {"default": 3},
        {"default": 4, "second": 2},
        {"default": 3},
    ]


def weave_settings(**more):
    return PoolSettings(**PATTERNS, **more)


@pytest.mark.parametrize("kernel", ["dense", "reference"])
def test_it_is_pefts_lora_with_the_same_patterns(make_plain, kernel):
    base = make_plain().eval()
    lora = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=4, lora_alpha=6, target_modules=["to_k", "to_v"], **PATTERNS)
    ).eval()
    prw.inject(base, rank=4, alpha=6.0, experts=["a"], kernel=kernel, **PATTERNS)
    for name, parameter in lora.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
            ours = (
                name.removeprefix("base_model.model.").replace("lora_A", "prw_A0").replace("lora_B", "prw_B0")
            )
            with torch.no_grad():
                base.get_parameter(ours).copy_(parameter)
    hidden = torch.randn(2, 5, 8)
    assert torch.allclose(base(hidden), lora(hidden), atol=1e-6)


@given(
    st.dictionaries(st.sampled_from([".*", "to_k", "attn.to_k", "^b.0.attn.to_k", "0.*"]), st.integers(1, 9))
)
def test_the_longest_key_counts_in_whatever_order(pattern):
    fitting = sorted(pattern, key=len)
    wanted = max((len(key), key, pattern[key]) for key in fitting)[2] if fitting else 16
    for keys in (sorted(pattern), sorted(pattern, reverse=True)):
        settings = PoolSettings(rank_pattern={key: pattern[key] for key in keys})
        assert settings.rank_at("b.0.attn.to_k") == wanted
        assert settings.rank_at("b.0.attn.to_v") == pattern.get("0.*", pattern.get(".*", 16))


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("target", ["kv", "all-linear"])
def test_a_key_that_fits_nothing_is_an_error(make_plain, setting, target):
    base = make_plain()
    with pytest.raises(prw.ConfigError, match=rf"(?s){setting} has the key 'to_z'.*blocks.0.to_"):
        prw.inject(base, target=target, **{setting: {"to_k": 2, "to_z": 2}})
    assert not hasattr(base, "peft_config")


def test_a_copied_expert_takes_its_ranks_along(make_plain, tmp_path):
    base = make_plain()
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(r=6, target_modules=["to_k"]))
    lora.save_pretrained(tmp_path)
    weave = prw.inject(base, rank=2)
    weave.import_lora(tmp_path, name="style")
    weave.add_expert("mine", init="style")
    weave.add_expert("plain")
    assert [rank_of(base, 1, "to_k", expert) for expert in range(3)] == [6, 6, 2]
    weave.remove_expert("style")
    weave.rename_expert("mine", "yours")
    weave.save_pretrained(tmp_path / "pool")
    weave.eject()
    assert prw.load(base, tmp_path / "pool").experts == ("yours", "plain")
    assert [rank_of(base, 1, "to_k", expert) for expert in range(2)] == [6, 2]


def test_a_folder_of_before_these_settings_still_loads(make_plain, tmp_path):
    base = make_plain()
    weave = prw.inject(base, rank=2, experts=["a"])
    weave.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    text = file.read_text()
    for name in ("rank_pattern", "alpha_pattern", "dropout", "expert_ranks"):
        assert f'"{name}"' in text
        text = "\n".join(line for line in text.splitlines() if f'"{name}"' not in line)
    file.write_text(text)
    stamp = (tmp_path / "adapter_model.safetensors").read_bytes()[:2000]
    assert not any(name in stamp for name in (b"rank_pattern", b"top_k", b"expert_ranks"))
    weave.eject()
    assert prw.load(base, tmp_path).experts == ("a",)


def test_dropout_acts_on_the_experts_in_training_only(make_plain, wake):
    base = make_plain(blocks=1)
    weave = prw.inject(base, rank=4, experts=["a"], dropout=0.5, noise=False)
    wake(weave)
    layer, hidden = base.blocks[0].to_k, torch.randn(2, 500, 8)
    base.eval()
    part = layer(hidden) - layer.base_layer(hidden)
    base.train()
    torch.manual_seed(0)
    dropped = layer(hidden) - layer.base_layer(hidden)
    torch.manual_seed(0)
    rows = torch.nn.functional.dropout(hidden.reshape(-1, 8), 0.5).reshape(hidden.shape)
    down, up = (getattr(layer, name)["default"].weight for name in ("prw_A0", "prw_B0"))
    assert torch.allclose(dropped, rows @ down.T @ up.T * 2.0, atol=1e-5)
    assert not torch.allclose(dropped, part, atol=1e-2)
    assert torch.allclose(part, hidden @ down.T @ up.T * 2.0, atol=1e-5)


def test_dropout_leaves_the_router_alone(make_plain, wake):
    base = make_plain(blocks=1).train()
    weave = prw.inject(base, rank=2, experts=["a", "b"], dropout=0.9, noise=False)
    wake(weave)
    hidden = torch.randn(2, 5, 8)
    logits = []
    for _ in range(2):
        with weave.record() as routing:
            base(hidden)
        logits.append(routing.all()[0].logits)
    assert torch.equal(*logits)

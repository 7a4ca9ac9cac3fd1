"""Which modules get experts: by structure, name, glob and pattern; what matches nothing is an error."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaForSequenceClassification, LlamaModel, T5Config, T5EncoderModel

import prw
from prw.tuner.targets import plan_pool
from prw.tuner.targets.plan import matches

FLUX_KV = [
    f"{kind}.0.attn.{part}"
    for kind in ("transformer_blocks", "single_transformer_blocks")
    for part in ("to_k", "to_v")
]


def planned(model, target):
    return plan_pool(model, prw.PrwConfig(target_modules=target)).config.target_modules


def test_flux_gets_its_image_stream_in_double_and_single_blocks(make_host):
    model = make_host("flux").model
    assert planned(model, "kv") == FLUX_KV
    assert planned(model, "k") == FLUX_KV[::2]
    assert planned(model, "v") == FLUX_KV[1::2]


def test_flux_text_projections_are_a_site_of_their_own_when_named(make_host):
    host = make_host("flux")
    weave = prw.inject(host.model, target=["to_k", "to_v", "add_k_proj", "add_v_proj"], rank=2)
    names = [site.name for site in weave.sites]
    assert names == [
        "transformer_blocks.0.attn",
        "transformer_blocks.0.attn.text",
        "single_transformer_blocks.0.attn",
    ]


STREAMS = {
    "FLUX": (["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"], ["to_k", "to_v"]),
    "HiDream": (["to_q", "to_k", "to_v", "to_q_t", "to_k_t", "to_v_t"], ["to_k", "to_v"]),
    "JoyImage": (["txt_attn_qkv", "img_attn_qkv"], ["img_attn_qkv"]),
    "PRX": (["txt_kv_proj", "img_qkv_proj"], ["img_qkv_proj"]),
    "Cosmos": (["to_k", "to_v", "k_img", "v_img"], ["to_k", "to_v"]),
    "an IP adapter": (["to_k", "to_v", "to_k_ip", "to_v_ip"], ["to_k", "to_v"]),
    "text alone": (["text_k_proj", "text_v_proj"], ["text_k_proj", "text_v_proj"]),
    "a picture alone": (["k_img", "v_img"], ["k_img", "v_img"]),
    "Longformer": (
        ["key", "value", "key_global", "value_global"],
        ["key", "value", "key_global", "value_global"],
    ),
}
WIDTHS = {"qkv": 24, "kv": 16}


@pytest.mark.parametrize("family", STREAMS)
def test_of_a_joint_attention_the_main_stream_is_taken_unless_all_are_asked_for(family):
    names, main = STREAMS[family]
    model = nn.ModuleDict({"attn": nn.ModuleDict({name: linear(name) for name in names})})
    keys_and_values = [name for name in names if "_q_" not in f"_{name}_"]
    assert planned(model, "kv") == [f"attn.{name}" for name in names if name in main]
    assert planned(model, "all-kv") == [f"attn.{name}" for name in keys_and_values]


def linear(name):
    fused = next((letters for letters in WIDTHS if letters in name), None)
    return nn.Linear(8, WIDTHS.get(fused, 8))


def test_all_streams_are_sites_of_their_own_and_are_kept_by_name(make_host, tmp_path):
    host = make_host("flux")
    weave = prw.inject(host.model, target="all-kv", rank=2, experts=["a"])
    assert [site.name for site in weave.sites] == [
        "transformer_blocks.0.attn",
        "transformer_blocks.0.attn.text",
        "single_transformer_blocks.0.attn",
    ]
    weave.save_pretrained(tmp_path)
    again = prw.load(make_host("flux").model, tmp_path)
    assert again.sites == weave.sites


@pytest.mark.parametrize(
    ("name", "pair"),
    [("llama", ("k_proj", "v_proj")), ("bert", ("key", "value")), ("vit", ("k_proj", "v_proj"))],
)
def test_transformers_families_are_found_by_structure(make_host, name, pair):
    host = make_host(name)
    weave = prw.inject(host.model, rank=2)
    assert [tuple(path.rpartition(".")[2] for path in site.modules) for site in weave.sites] == [
        pair
    ] * host.sites
    assert all(site.in_features == 16 for site in weave.sites)


@pytest.mark.parametrize(
    "target",
    [
        ["blocks.0.to_k", "blocks.0.to_v"],
        "blocks.0.to_[kv]",
        r"blocks\.0\.to_(k|v)",
        ["*0.to_k", r".*0\.to_v"],
    ],
)
def test_names_globs_and_patterns_say_the_same(make_plain, target):
    model = make_plain()
    assert planned(model, target) == ["blocks.0.to_k", "blocks.0.to_v"]
    assert [site.name for site in prw.inject(model, target=target, rank=2).sites] == ["blocks.0"]


def test_any_linear_can_carry_experts_as_a_site_of_its_own(make_plain):
    model = make_plain().eval()
    hidden = torch.randn(2, 3, 8)
    before = model(hidden)
    weave = prw.inject(model, target="to_q", rank=2, experts=["a"])
    assert [site.name for site in weave.sites] == ["blocks.0.to_q", "blocks.1.to_q"]
    assert torch.equal(model(hidden), before)


def test_what_matched_nothing_is_an_error_that_lists_what_was_there(make_plain):
    model = make_plain()
    for target in ("wk", ["to_k", "to_z"], "blocks", r"(", []):
        with pytest.raises(prw.TargetError, match=r"to_k \(Linear\).*to_v \(Linear\)"):
            prw.inject(model, target=target)
    with pytest.raises(prw.TargetError, match="no attention block"):
        prw.inject(nn.Sequential(nn.Linear(3, 3)))


def test_projections_of_unequal_input_width_stay_apart():
    model = nn.Module()
    model.to_k, model.to_v = nn.Linear(4, 6), nn.Linear(5, 6)
    weave = prw.inject(model, rank=2, experts=["a"])
    assert [(site.name, site.in_features) for site in weave.sites] == [("to_k", 4), ("to_v", 5)]


def test_a_model_that_is_itself_an_attention_block():
    model = nn.Module()
    model.k_proj, model.v_proj = nn.Linear(4, 4), nn.Linear(4, 2)
    (site,) = prw.inject(model, rank=2).sites
    assert (site.name, site.modules, site.out_features) == ("model", ("k_proj", "v_proj"), (4, 2))


@given(st.text("ab.*", max_size=8), st.text("ab.*([", max_size=8))
def test_matching_never_fails_and_knows_itself(name, entry):
    assert isinstance(matches(name, entry), bool)
    assert matches(name, name)


@given(
    st.sets(st.tuples(st.sampled_from("xyz"), st.sampled_from(["to_k", "to_v", "key", "other"])), min_size=1)
)
def test_every_projection_is_in_exactly_one_site(parts):
    blocks = {block: nn.ModuleDict() for block, _ in sorted(parts)}
    for block, name in sorted(parts):
        blocks[block][name] = nn.Linear(2, 2)
    plan = plan_pool(nn.ModuleDict(blocks), prw.PrwConfig(target_modules=[".*"]))
    assert sorted(plan.sites) == sorted(".".join(part) for part in parts)
    for path, site in plan.sites.items():
        assert all(plan.sites[member] is site for member in site.slices)
        assert path in site.slices
    assert len({site.name for site in plan.sites.values()}) == len({id(site) for site in plan.sites.values()})


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


def test_a_plan_names_sites_and_output_slices_and_changes_nothing(make_plain):
    model = nn.ModuleDict({"plain": make_plain(blocks=1), "fused": nn.ModuleDict({"qkv": nn.Linear(8, 24)})})
    config = prw.PrwConfig()
    plan = plan_pool(model, config)
    assert {path: (site.name, list(site.slices)) for path, site in plan.sites.items()} == {
        "plain.blocks.0.to_k": ("plain.blocks.0", ["plain.blocks.0.to_k", "plain.blocks.0.to_v"]),
        "plain.blocks.0.to_v": ("plain.blocks.0", ["plain.blocks.0.to_k", "plain.blocks.0.to_v"]),
        "fused.qkv": ("fused", ["fused.qkv"]),
    }
    assert list(plan.sites["fused.qkv"].slices["fused.qkv"]) == ["k", "v"]
    assert plan.config.resolved_from == config.target_modules == "kv"
    assert plan.asked == set(plan.config.target_modules)
    assert not any(isinstance(module, prw.tuner.PrwLinear) for module in model.modules())


def test_the_projections_of_a_state_dict_replace_those_that_are_asked_for(make_plain):
    plan = plan_pool(make_plain(), prw.PrwConfig(), in_state={"blocks.1.to_k", "blocks.1.to_v"})
    assert {site.name for site in plan.sites.values()} == {"blocks.1"}
    assert {"blocks.0.to_k", "blocks.0.to_v"} < plan.asked

"""Which layers are asked for: by "all-linear" and by PEFT's own fields; no more, no less."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import prw
from prw.tuner import put_in

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


PLACES = {"rank": 2, "experts": ["a"]}


def names(model):
    return [path for site in prw.Weave(model).sites for path in site.modules]


def doubled(make_plain, blocks=2):
    model = nn.Module()
    model.blocks, model.sub = make_plain(blocks=blocks).blocks, make_plain(blocks=blocks)
    return model


@pytest.mark.parametrize(
    "fields",
    [
        {"layers_to_transform": [0]},
        {"layers_to_transform": 0, "layers_pattern": "blocks"},
        {"exclude_modules": ["blocks.1.to_k", "blocks.1.to_v"]},
        {"exclude_modules": r"blocks\.1\..*", "target_modules": ["to_k", "to_v"]},
        {"layers_to_transform": [0], "target_modules": r".*\.to_[kv]"},
    ],
)
def test_pefts_fields_choose_among_the_targets(make_plain, tmp_path, fields):
    wrapped = get_peft_model(make_plain(), prw.PrwConfig(**PLACES, **fields))
    assert names(wrapped) == ["blocks.0.to_k", "blocks.0.to_v"]
    wrapped.save_pretrained(tmp_path)
    assert names(PeftModel.from_pretrained(make_plain(), tmp_path)) == ["blocks.0.to_k", "blocks.0.to_v"]
    assert names(prw.load(make_plain(), tmp_path).model) == ["blocks.0.to_k", "blocks.0.to_v"]


def test_excluding_one_of_a_pair_leaves_the_other(make_plain):
    model = make_plain()
    put_in(model, prw.PrwConfig(**PLACES, exclude_modules=["blocks.0.to_v"]), "default")
    assert names(model) == ["blocks.0.to_k", "blocks.1.to_k", "blocks.1.to_v"]


def test_fields_that_leave_nothing_are_an_error(make_plain):
    model = make_plain()
    with pytest.raises(prw.TargetError, match=r"4 modules match.*layers_to_transform.* leave none"):
        put_in(model, prw.PrwConfig(**PLACES, layers_to_transform=[7]), "default")
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("blocks", [2, 12])
def test_a_path_that_merely_ends_like_a_target_is_left_alone(make_plain, tmp_path, blocks):
    model = doubled(make_plain, blocks)
    weave = prw.inject(model, target=r"blocks\.\d+\.to_[kv]", **PLACES)
    wanted = [f"blocks.{index}.to_{part}" for index in range(blocks) for part in "kv"]
    assert names(model) == wanted
    weave.save_pretrained(tmp_path)
    assert names(prw.load(doubled(make_plain, blocks), tmp_path).model) == wanted
    assert names(PeftModel.from_pretrained(doubled(make_plain, blocks), tmp_path)) == wanted


def test_many_targets_are_saved_by_whole_paths(make_plain, wake, tmp_path):
    model, hidden = make_plain(blocks=12).eval(), torch.randn(2, 5, 8)
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    weave = prw.inject(model, **PLACES)
    wake(weave)
    weave.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert saved == [f"blocks.{index}.to_{part}" for index in range(12) for part in "kv"]
    other = make_plain(blocks=12).eval()
    other.load_state_dict(base)
    prw.load(other, tmp_path)
    assert torch.equal(other(hidden), model(hidden))


def test_a_folder_of_an_earlier_version_that_adapted_more_than_it_says_still_loads(
    make_plain, wake, tmp_path
):
    model = doubled(make_plain)
    weave = prw.inject(model, target=["to_k", "to_v"], **PLACES)
    wake(weave)
    weave.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    values = json.loads(file.read_text())
    for says in (
        {"target_modules": ["blocks.0.to_k", "blocks.0.to_v", "blocks.1.to_k", "blocks.1.to_v"]},
        {"target_modules": ["to_k", "to_v"], "layers_to_transform": [0]},
    ):
        file.write_text(json.dumps({**values, **says}))
        assert names(prw.load(doubled(make_plain), tmp_path).model) == names(model)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    moved = {name.replace("sub.blocks", "far.blocks"): weight for name, weight in weights.items()}
    save_file(moved, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(prw.StorageError, match="of another model"):
        prw.load(doubled(make_plain), tmp_path)


def test_a_projection_in_two_places_is_refused(make_plain):
    model = make_plain()
    model.blocks[1].to_k = model.blocks[0].to_k
    with pytest.raises(prw.TargetError, match=r"one module in 2 places \(blocks\.0\.to_k, blocks\.1\.to_k\)"):
        prw.inject(model, **PLACES)
    assert not hasattr(model, "peft_config")
    prw.inject(model, target=["to_v"], **PLACES)
    whole = make_plain()
    whole.again = whole.blocks  # a block in two places is fine: experts are put into the block itself
    assert len(prw.inject(whole, **PLACES).sites) == 2


def test_exclude_and_layers_limit_and_what_matches_nothing_is_an_error(make_plain):
    def places(**limits):
        model = make_plain(blocks=3)
        return [path for site in prw.inject(model, rank=2, **limits).sites for path in site.modules]

    assert places(exclude="blocks.1") == ["blocks.0.to_k", "blocks.0.to_v", "blocks.2.to_k", "blocks.2.to_v"]
    assert places(exclude=["to_v", "blocks.[01].*"]) == ["blocks.2.to_k"]
    assert places(layers=[1]) == places(layers=1) == ["blocks.1.to_k", "blocks.1.to_v"]
    assert places(layers=[0, 2], exclude="to_k") == ["blocks.0.to_v", "blocks.2.to_v"]
    with pytest.raises(prw.TargetError, match=r"exclude='blocks\.7' matched nothing"):
        places(exclude=["to_k", "blocks.7"])
    with pytest.raises(prw.TargetError, match="index 7"):
        places(layers=[0, 7])

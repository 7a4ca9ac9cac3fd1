"""PEFT's own fields choose among the targets, and what is chosen is adapted: no more, no less."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import prw
from prw.tuner import put_in

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

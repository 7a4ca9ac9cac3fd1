"""Loaded pools: bit-equal, also into a larger pool; damaged and foreign folders leave the model alone."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import prw
from tests.prw.storage.conftest import fresh

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def refuse(make_plain, base, path, hidden, match):
    model = fresh(make_plain, base)
    modules, before = dict(model.named_modules()), model(hidden)
    with pytest.raises(prw.StorageError, match=match):
        prw.load(model, path)
    assert torch.equal(model(hidden), before)
    assert {name: id(module) for name, module in model.named_modules()} == {
        name: id(module) for name, module in modules.items()
    }
    assert all(p.requires_grad for p in model.parameters())
    assert not hasattr(model, "peft_config")


def test_a_loaded_pool_is_bit_equal_and_trains_on(saved, make_plain):
    base, path, hidden, expected = saved
    model = fresh(make_plain, base)
    weave = prw.load(model, path)
    assert torch.equal(model(hidden), expected)
    assert weave.experts == ("a", "b")
    assert (weave.settings.rank, weave.settings.granularity, weave.settings.gate) == (2, "sample", "unit")
    assert weave.trainable_parameters()
    assert all(p.requires_grad for p in weave.trainable_parameters())


def test_a_stage_loads_into_a_larger_pool(saved, make_plain):
    base, path, hidden, expected = saved
    model = fresh(make_plain, base)
    settings = {"rank": 2, "granularity": "sample", "gate": "unit"}
    weave = prw.inject(model, experts=["a", "b", "c"], **settings)
    same = prw.load(model, path)
    assert same.experts == weave.experts == ("a", "b", "c")
    with weave.as_of("b"):
        assert torch.equal(model(hidden), expected)
    weave.eject()
    prw.inject(model, experts=["b", "a"], **settings)
    with pytest.raises(prw.StorageError, match="no earlier stage"):
        prw.load(model, path)


def test_missing_and_foreign_folders_are_refused(saved, make_plain, tmp_path):
    base, path, hidden, _ = saved
    refuse(make_plain, base, tmp_path / "nowhere", hidden, "no such folder")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.bin").write_bytes(b"")
    refuse(make_plain, base, tmp_path / "other", hidden, r"there is: model\.bin")
    (tmp_path / "other" / CONFIG).write_text(json.dumps({"peft_type": "LORA"}))
    refuse(make_plain, base, tmp_path / "other", hidden, "LORA adapter.*import_lora")
    (path / WEIGHTS).unlink()
    refuse(make_plain, base, path, hidden, f"no {WEIGHTS}")
    with pytest.raises(prw.StorageError, match="is a file"):
        prw.inject(fresh(make_plain, base)).save_pretrained(tmp_path / "other" / CONFIG)


def test_damaged_and_misfit_pools_are_refused(saved, make_plain):
    base, path, hidden, _ = saved
    weights, config = load_file(path / WEIGHTS), (path / CONFIG).read_text()
    one = "base_model.model.blocks.0.to_k.prw_A0.weight"
    save_file({name: weight for name, weight in weights.items() if name != one}, path / WEIGHTS)
    refuse(make_plain, base, path, hidden, f"1 weights are missing .{one}")
    save_file({**weights, "extra": torch.zeros(1)}, path / WEIGHTS)
    refuse(make_plain, base, path, hidden, "1 have no place .extra")
    save_file({**weights, one: torch.zeros(2, 9)}, path / WEIGHTS)
    refuse(make_plain, base, path, hidden, r"shape \(2, 9\), the model needs \(2, 8\)")
    save_file(weights, path / WEIGHTS)
    (path / CONFIG).write_text(config.replace('"to_k', '"to_z').replace(".to_k", ".to_z"))
    refuse(make_plain, base, path, hidden, "of another model")
    (path / CONFIG).write_text(config.replace('"rank": 2', '"rank": -2'))
    refuse(make_plain, base, path, hidden, "settings that cannot be used")
    (path / CONFIG).write_text(config[:40])
    refuse(make_plain, base, path, hidden, "no JSON")


@given(cut=st.integers(0, 2000))
def test_a_file_cut_anywhere_is_refused(cut, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut")
    model = torch.nn.Module()
    model.k_proj, model.v_proj = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    weave = prw.inject(model, rank=1, experts=["a"])
    weave.save_pretrained(path)
    weave.eject()
    whole = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(prw.StorageError, match="damaged"):
        prw.load(model, path)
    assert not hasattr(model, "peft_config")

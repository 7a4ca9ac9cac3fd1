"""Saved pools: bit-equal, nested, atomic; damaged and foreign folders leave the model alone."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import prw
from prw.storage.atomic import atomic_folder

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def saved(make_plain, wake, tmp_path):
    torch.manual_seed(11)
    model = make_plain().eval()
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    weave = prw.inject(model, rank=2, experts=["a", "b"], granularity="sample", gate="unit")
    wake(weave)
    weave.save_pretrained(tmp_path / "pool")
    hidden = torch.randn(2, 5, 8)
    return base, tmp_path / "pool", hidden, model(hidden)


def fresh(make_plain, base):
    model = make_plain().eval()
    model.load_state_dict(base)
    return model


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


def test_the_files_are_what_peft_expects_and_the_card_says_import_prw(saved):
    _, path, _, _ = saved
    assert sorted(entry.name for entry in path.iterdir()) == ["README.md", CONFIG, WEIGHTS]
    names = set(load_file(path / WEIGHTS))
    assert "base_model.model.blocks.0.to_k.prw_A0.weight" in names
    assert "base_model.model.blocks.0.to_k.prw_gate1.weight" in names
    assert len(names) == 2 * 2 * (2 + 2 + 2)
    assert json.loads((path / CONFIG).read_text())["experts"] == ["a", "b"]
    assert "import prw" in (path / "README.md").read_text()


def test_equal_pools_give_equal_files(saved, make_plain, tmp_path):
    base, path, _, _ = saved
    prw.load(fresh(make_plain, base), path).save_pretrained(tmp_path / "again")
    for name in (WEIGHTS, CONFIG, "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (path / name).read_bytes()


def test_saving_again_replaces_the_pool_and_keeps_other_files(saved, make_plain, tmp_path):
    base, path, hidden, _ = saved
    (path / "notes").mkdir()
    (path / "notes" / "mine.txt").write_text("keep me")
    model = fresh(make_plain, base)
    weave = prw.load(model, path)
    weave.add_expert("c", init="a")
    weave.save_pretrained(path)
    assert (path / "notes" / "mine.txt").read_text() == "keep me"
    other = fresh(make_plain, base)
    assert prw.load(other, path).experts == ("a", "b", "c")
    assert torch.equal(other(hidden), model(hidden))
    assert [entry.name for entry in tmp_path.iterdir()] == ["pool"], "no drafts are left"


def test_a_save_that_fails_leaves_the_old_folder(saved, tmp_path):
    _, path, _, _ = saved
    before = {entry.name: entry.read_bytes() for entry in path.iterdir()}
    with pytest.raises(RuntimeError, match="power cut"), atomic_folder(path, last=CONFIG) as draft:
        (draft / WEIGHTS).write_bytes(b"half")
        raise RuntimeError("power cut")
    assert {entry.name: entry.read_bytes() for entry in path.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["pool"]


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


@pytest.mark.parametrize("left", [torch.empty(0), torch.zeros(5)])
def test_a_part_of_a_weight_is_not_saved_as_the_whole(make_plain, tmp_path, left):
    """FSDP1 and DeepSpeed's ZeRO-3 leave flat or empty parts in the place of a weight."""
    weave = prw.inject(make_plain(), rank=2, experts=["a"])
    weave.model.blocks[0].to_v.prw_B0["default"].weight.data = left
    with pytest.raises(prw.StorageError, match=r"has shape \(\d,\).*summon_full_params"):
        weave.save_pretrained(tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


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

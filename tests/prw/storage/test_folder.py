"""Saved pools: bit-equal, nested, atomic; damaged and foreign folders leave the model alone."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import prw
from prw.storage import write_folder
from prw.storage.atomic import atomic_folder
from tests.prw.storage.conftest import fresh

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def pool(make_plain):
    return prw.inject(make_plain(), rank=2, experts=["a"])


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


def experts_at(folder, make_plain):
    return prw.load(make_plain(), folder).experts


def test_files_of_two_saves_are_told_apart_and_old_ones_still_load(pool, make_plain, tmp_path):
    pool.save_pretrained(tmp_path / "one")
    pool.freeze()
    pool.save_pretrained(tmp_path / "two")
    shutil.copy(tmp_path / "one" / CONFIG, tmp_path / "two" / CONFIG)
    model = make_plain()
    with pytest.raises(prw.StorageError, match="mixes two saves"):
        prw.load(model, tmp_path / "two")
    assert not hasattr(model, "peft_config")
    file = tmp_path / "two" / WEIGHTS
    save_file(load_file(file), file, metadata={"format": "pt"})  # as earlier versions and PEFT write it
    assert experts_at(tmp_path / "two", make_plain) == ("a",)
    values = json.loads((tmp_path / "one" / CONFIG).read_text())
    (tmp_path / "one" / CONFIG).write_text(json.dumps({**values, "kernel": "reference"}))
    assert prw.load(make_plain(), tmp_path / "one").settings.kernel == "reference"


def test_equal_pools_give_equal_bytes_every_time(pool, tmp_path):
    weights = {"b": torch.ones(3), "a\u00e4": torch.zeros(2, 2)}
    for index in range(12):
        write_folder(tmp_path / str(index), pool.config, weights)
    assert len({(tmp_path / str(index) / WEIGHTS).read_bytes() for index in range(12)}) == 1
    assert load_file(tmp_path / "0" / WEIGHTS)["a\u00e4"].shape == (2, 2)

"""Saving into a folder that exists: a kill, a reader or another writer at any moment loses nothing."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import prw
from prw.storage import write_folder

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def pool(make_plain):
    return prw.inject(make_plain(), rank=2, experts=["a"])


def files(folder):
    return sorted(path.name for path in folder.rglob("*"))


def experts_at(folder, make_plain):
    return prw.load(make_plain(), folder).experts


@pytest.mark.parametrize("after", range(4))
def test_a_kill_at_any_rename_leaves_a_pool_that_loads(pool, make_plain, tmp_path, monkeypatch, after):
    pool.save_pretrained(tmp_path)
    pool.add_expert("b")
    done, replace = [], Path.replace

    def until(self, target):
        if len(done) == after:
            raise Killed
        done.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", until)
    if after < 3:
        with pytest.raises(Killed):
            pool.save_pretrained(tmp_path)
    else:
        pool.save_pretrained(tmp_path)
    monkeypatch.undo()
    assert done == ["README.md", WEIGHTS, CONFIG][:after]
    assert experts_at(tmp_path, make_plain) == (("a",) if after < 2 else ("a", "b"))
    pool.add_expert("c")
    pool.save_pretrained(tmp_path)
    assert experts_at(tmp_path, make_plain) == ("a", "b", "c")


def test_a_reader_between_two_renames_sees_the_new_pool(pool, make_plain, tmp_path, monkeypatch):
    pool.save_pretrained(tmp_path)
    pool.add_expert("b")
    seen, replace = [], Path.replace

    def looked_at(self, target):
        result = replace(self, target)
        seen.append(experts_at(tmp_path, make_plain))
        return result

    monkeypatch.setattr(Path, "replace", looked_at)
    pool.save_pretrained(tmp_path)
    assert seen == [("a",), ("a", "b"), ("a", "b")]
    assert files(tmp_path) == ["README.md", CONFIG, WEIGHTS], "no drafts are left"


def test_a_file_that_another_writer_holds_open_goes_on(pool, tmp_path):
    pool.save_pretrained(tmp_path)
    with (tmp_path / "log.txt").open("w") as log:
        log.write("one\n")
        log.flush()
        pool.save_pretrained(tmp_path)
        log.write("two\n")
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\n"


def test_the_current_folder_can_be_saved_into(pool, make_plain, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    pool.save_pretrained(".")
    pool.save_pretrained(".")
    assert files(tmp_path) == ["README.md", CONFIG, WEIGHTS, "home"]
    assert experts_at(Path(), make_plain) == ("a",)


@pytest.mark.skipif(os.name == "nt", reason="links and modes of POSIX")
def test_only_the_folder_itself_is_written_to(pool, tmp_path):
    home = tmp_path / "home" / "pool"
    home.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(home)
    before = home.parent.stat().st_mtime_ns
    pool.save_pretrained(link)
    assert link.is_symlink()
    assert files(home) == ["README.md", CONFIG, WEIGHTS]
    assert home.parent.stat().st_mtime_ns == before, "the parent may be read-only"


def test_everything_is_forced_to_disk_before_it_gets_its_name(pool, tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), fsync(handle)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append(to.name), replace(self, to)))
    pool.save_pretrained(tmp_path)
    named = ["README.md", "sync", WEIGHTS, "sync", CONFIG, "sync"]
    assert events == ["sync"] * 4 + named


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

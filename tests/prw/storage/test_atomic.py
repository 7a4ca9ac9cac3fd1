"""Saving into a folder that exists: a kill, a reader or another writer at any moment loses nothing."""

import os
from pathlib import Path

import pytest

import prw
from prw.storage.atomic import atomic_file, write_text

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def pool(make_plain):
    return prw.inject(make_plain(), rank=2, experts=["a"])


def experts_at(folder, make_plain):
    return prw.load(make_plain(), folder).experts


def files(folder):
    return sorted(path.name for path in folder.rglob("*"))


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


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, before):
    file = tmp_path / "new" / "notes.txt"
    if before is not None:
        write_text(file, before)
    file.parent.mkdir(exist_ok=True)
    with pytest.raises(Killed), atomic_file(file) as draft:
        assert (draft.parent, draft.suffix) == (file.parent, ".txt")
        draft.write_text("half", encoding="utf-8")
        raise Killed
    assert files(file.parent) == ([] if before is None else ["notes.txt"])
    write_text(file, "né\n")
    assert file.read_bytes() == "né\n".encode()
    assert files(file.parent) == ["notes.txt"]

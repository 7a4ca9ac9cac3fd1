"""A cache that cannot be written costs no work: that is said once, and all is still computed and read."""

import logging
import multiprocessing
import resource

import pytest
import torch

from recipes.cologen import cache, train
from recipes.cologen.caching.store import TensorStore
from tests.recipes.cologen.caching.test_store import alike, entry
from tests.recipes.cologen.training.conftest import base_path
from tests.recipes.cologen.training.test_on_files import arrow_cache, config, write_folder

__all__ = ["arrow_cache", "base_path"]


def full(tensors, path, metadata=None):
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def _write_under_a_limit(folder, said):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    notices = []
    store = TensorStore(folder, shard_bytes=1, announce=notices.append)
    store.put("small", entry(1))
    for number in range(3):
        store.put(f"large{number}", entry(number, 4000))
        store.flush()
    read = alike(store.get("small"), entry(1)) and store.get("large0") is None
    said.put((notices, read, store.stopped is not None))


def test_a_real_limit_of_the_disk_is_said_once_and_what_was_kept_is_still_read(tmp_path):
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    writer = context.Process(target=_write_under_a_limit, args=(tmp_path, said))
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    notices, read, stopped = said.get()
    assert read and stopped
    (notice,) = notices
    assert str(tmp_path) in notice and "File too large" in notice and "data.cache.folder" in notice
    assert [path.name.endswith(".safetensors") for path in tmp_path.iterdir()] == [True]


def test_a_store_that_stopped_takes_up_nothing_and_the_next_run_writes_again(tmp_path, monkeypatch):
    said = []
    store = TensorStore(tmp_path, announce=said.append)
    store.put("a", entry(1))
    monkeypatch.setattr("recipes.cologen.caching.store.save_file", full)
    store.flush()
    assert list(tmp_path.iterdir()) == [] and len(said) == 1
    monkeypatch.undo()
    store.put("b", entry(2))
    store.flush()
    assert len(store) == 0 and store.get("b") is None and len(said) == 1
    again = TensorStore(tmp_path)
    again.put("b", entry(2))
    again.flush()
    store.flush()  # still reads what others write
    assert alike(store.get("b"), entry(2))


def test_a_folder_that_cannot_be_made_is_said_too(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        store = TensorStore(tmp_path / "file" / "latents")
    store.put("a", entry(1))
    store.flush()
    assert store.get("a") is None and store.size_bytes() == 0
    (record,) = caplog.records
    assert str(tmp_path / "file") in record.getMessage()


def test_a_damaged_file_that_cannot_be_deleted_is_only_forgotten(tmp_path, monkeypatch):
    (tmp_path / "bad.safetensors").write_bytes(b"12345678{")

    def refuse(path, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    said = []
    assert len(TensorStore(tmp_path, announce=said.append)) == 0
    assert len(said) == 1 and "damaged" in said[0]


@pytest.fixture
def settings(base_path, tmp_path, monkeypatch):
    """A run on files with a cache; its report is left out."""
    monkeypatch.setattr(train, "build_report", lambda output, announce: output / "report/index.html")
    (tmp_path / "data").mkdir()
    asked = config(base_path, write_folder(tmp_path / "data"))
    (tmp_path / "run.yaml").write_text(asked.to_yaml())
    return ["--config", str(tmp_path / "run.yaml")]


@pytest.mark.parametrize("shard_mb", [128, 1])
def test_a_run_with_a_full_cache_disk_ends_with_the_same_weights(
    shard_mb, settings, tmp_path, monkeypatch, capsys
):
    def weights(name, *overrides):
        asked = [*settings, "--output", str(tmp_path / name), *(["--set", *overrides] if overrides else [])]
        assert train.main(asked) == 0
        return (tmp_path / name / "checkpoints/editing/prw/adapter_model.safetensors").read_bytes()

    plain = weights("plain", "machine.encode_batch=1")
    monkeypatch.setattr("recipes.cologen.caching.store.save_file", full)
    if shard_mb == 1:  # every entry fills a shard, so the first put fails
        original = TensorStore.__init__
        monkeypatch.setattr(
            TensorStore, "__init__", lambda self, folder, size, announce: original(self, folder, 1, announce)
        )
    capsys.readouterr()
    kept = weights("kept", f"data.cache.folder={tmp_path / 'cache'}", "machine.encode_batch=1")
    assert kept == plain
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("nothing more is kept") == 2  # one cache of latents, one of text
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_filling_a_full_disk_ahead_is_an_error(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("recipes.cologen.caching.store.save_file", full)
    assert cache.main([*settings, "--folder", str(tmp_path / "cache")]) == 1
    assert "No space left" in capsys.readouterr().err


def test_without_a_listener_it_is_logged(tmp_path, monkeypatch, caplog):
    store = TensorStore(tmp_path)
    store.put("a", {"tokens": torch.ones(2)})
    monkeypatch.setattr("recipes.cologen.caching.store.save_file", full)
    with caplog.at_level(logging.WARNING):
        store.flush()
    assert "No space left" in caplog.text

"""A store gives back what was put in, to several processes at once, and never what is damaged."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from recipes.cologen.caching.store import TensorStore

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3)
PARTS = st.dictionaries(
    st.sampled_from(["tokens", "embeds", "pooled"]), st.tuples(SHAPES, DTYPES), min_size=1
)


def alike(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def entry(value, size=8):
    return {"tokens": torch.full((size,), float(value))}


@settings(max_examples=25)
@given(st.lists(PARTS, min_size=1, max_size=6), st.integers(1, 400))
def test_what_was_put_in_comes_out_again_by_another_reader(tmp_path_factory, entries, shard_bytes):
    folder = tmp_path_factory.mktemp("store")
    store = TensorStore(folder, shard_bytes)
    made = {
        f"{number:032x}": {name: torch.randn(shape).to(dtype) for name, (shape, dtype) in parts.items()}
        for number, parts in enumerate(entries)
    }
    for key, parts in made.items():
        store.put(key, parts)
        assert alike(store.get(key), parts)
    store.flush()
    again = TensorStore(folder)
    assert len(again) == len(store) == len(made)
    assert all(alike(again.get(key), parts) and alike(store.get(key), parts) for key, parts in made.items())
    assert again.get("f" * 32) is None and "f" * 32 not in again
    assert again.size_bytes() == sum(path.stat().st_size for path in folder.iterdir())


def test_what_others_write_is_seen_after_a_refresh(tmp_path):
    here, there = TensorStore(tmp_path), TensorStore(tmp_path)
    there.put("a", entry(1))
    assert here.get("a") is None
    there.flush()
    assert here.get("a") is None
    here.refresh()
    assert alike(here.get("a"), entry(1))


@pytest.mark.parametrize("damage", ["cut off", "flipped", "no shard", "emptied"])
def test_a_damaged_shard_is_deleted_with_a_notice_and_others_stay(damage, tmp_path):
    store, said = TensorStore(tmp_path), []
    for key in "ab":
        store.put(key, entry(ord(key)))
        store.flush()
    (path,) = (shard for shard in tmp_path.iterdir() if b'"b/tokens"' in shard.read_bytes())
    whole = path.read_bytes()
    harmed = {"cut off": whole[:-9], "flipped": whole[:-1] + b"?", "no shard": b"12345678{", "emptied": b""}
    path.write_bytes(harmed[damage])
    again = TensorStore(tmp_path, announce=said.append)
    assert again.get("b") is None
    assert alike(again.get("a"), entry(ord("a")))
    assert len(said) == 1 and path.name in said[0] and "is deleted" in said[0]
    assert not path.exists()
    again.put("b", entry(5))
    again.flush()
    assert alike(TensorStore(tmp_path).get("b"), entry(5))


def test_an_entry_without_a_checksum_is_not_believed(tmp_path):
    save_file({"a/tokens": torch.ones(3)}, tmp_path / "foreign.safetensors")
    said = []
    assert TensorStore(tmp_path, announce=said.append).get("a") is None and len(said) == 1


def test_check_reads_all_and_counts_what_was_lost(tmp_path):
    store = TensorStore(tmp_path, shard_bytes=64)
    for key in "abcd":
        store.put(key, entry(ord(key)))
    path = next(iter(tmp_path.iterdir()))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    again = TensorStore(tmp_path, announce=lambda text: None)
    lost = again.check()
    assert lost > 0 and len(again) == 4 - lost and again.check() == 0


def test_a_shard_that_another_process_deleted_is_no_error(tmp_path):
    store = TensorStore(tmp_path)
    store.put("a", entry(1))
    store.flush()
    for path in tmp_path.iterdir():
        path.unlink()
    assert store.get("a") is None and "a" not in store


def test_old_leftovers_of_killed_writers_are_removed_and_young_ones_kept(tmp_path):
    old, young = tmp_path / ".new-0-old.safetensors", tmp_path / ".new-1-young.safetensors"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert len(TensorStore(tmp_path)) == 0
    assert not old.exists() and young.exists()


def _write_for_ever(folder):
    store = TensorStore(folder, shard_bytes=1)
    number = 0
    while True:
        store.put(f"{os.getpid()}-{number}", entry(number, 2000))
        number += 1


def test_killed_writers_leave_only_whole_entries(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_for_ever, args=(tmp_path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    limit = time.monotonic() + 20
    while len(list(tmp_path.glob("[!.]*"))) < 30 and time.monotonic() < limit:
        time.sleep(0.01)
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    said = []
    store = TensorStore(tmp_path, announce=said.append)
    assert len(store) >= 30 and said == []
    for pid in (writer.pid for writer in writers):
        numbers = [number for number in range(len(store)) if f"{pid}-{number}" in store]
        assert numbers == list(range(len(numbers)))
        assert all(alike(store.get(f"{pid}-{number}"), entry(number, 2000)) for number in numbers)

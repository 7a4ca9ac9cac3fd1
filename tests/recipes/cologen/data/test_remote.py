"""Parquet files may be at an address; what is read in place may not, and says what to do."""

import datasets
import fsspec
import pytest

from recipes.cologen.data.sources.json_files import JsonRows
from recipes.cologen.data.sources.shards import ShardRows
from recipes.cologen.data.sources.tables import open_parquet
from recipes.cologen.errors import DataSetError


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    for name, folder in (("HF_DATASETS_CACHE", "arrow"), ("DOWNLOADED_DATASETS_PATH", "downloads")):
        monkeypatch.setattr(datasets.config, name, tmp_path / folder)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


def test_remote_parquet_is_read_as_local_and_beside_it(tmp_path):
    # fsspec's file system in memory stands for https:// and hf://, which go the same way.
    for name, texts in (("a", ["one", "two"]), ("b", ["three"])):
        datasets.Dataset.from_dict({"text": texts}).to_parquet(tmp_path / f"{name}.parquet")
    fsspec.filesystem("memory").pipe("/far/a.parquet", (tmp_path / "a.parquet").read_bytes())
    rows = open_parquet(f"memory://far/a.parquet,{tmp_path}/b.parquet", "data.sets.mine")
    assert [rows.row(index)["text"] for index in range(len(rows))] == ["one", "two", "three"]
    with pytest.raises(DataSetError, match=r"data\.sets\.mine: `datasets` cannot open .*gone\.parquet"):
        open_parquet("memory://far/gone.parquet", "data.sets.mine")


@pytest.mark.parametrize("kind", [ShardRows, JsonRows])
def test_remote_shards_and_lists_are_refused_with_the_way_out(kind):
    with pytest.raises(DataSetError, match=r"https://host/a\.tar is not on this machine.*hf download"):
        kind("https://host/a.tar", "data.sets.mine")

"""Rows from every kind of source: what was written comes back by its index, and faults are named."""

import gzip
import io
import json
import sys
import tarfile

import datasets
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.cologen.config.data import DataSettings, SetSettings
from recipes.cologen.data.layouts.regions import decoded_segmentation
from recipes.cologen.data.sets import DataSet
from recipes.cologen.data.sources.json_files import JsonRows
from recipes.cologen.data.sources.paired_folder import PairedFolder
from recipes.cologen.data.sources.rows import open_picture
from recipes.cologen.data.sources.shards import ShardRows
from recipes.cologen.data.sources.tables import open_parquet
from recipes.cologen.errors import BrokenPictureError, DataSetError
from tests.recipes.cologen.data.published import (
    PICTURE,
    TEXT,
    parquet,
    picture,
    pixels,
    png,
    run_lengths,
)


def write_shards(folder, samples, per_shard=2):
    for number in range(0, len(samples), per_shard):
        with webdataset.TarWriter(str(folder / f"part-{number // per_shard:03}.tar")) as shard:
            for place, sample in enumerate(samples[number : number + per_shard]):
                shard.write({"__key__": f"dir.a/{number + place:05}", **sample})
    return f"{folder}/part-*.tar"


samples = st.lists(
    st.fixed_dictionaries(
        {
            # Marks that are no part of a text are in test_text.py.
            "txt": st.text(st.characters(exclude_characters="\x00\ufeff"), max_size=20).map(str.strip),
            "json": st.dictionaries(st.sampled_from("abc"), st.integers()),
        },
        optional={"cls": st.binary(max_size=600), "mask.png": st.binary(min_size=1, max_size=9)},
    ),
    min_size=1,
    max_size=7,
)


@given(samples, st.integers(1, 3))
@settings(max_examples=30)
def test_shards_give_back_what_webdataset_wrote_in_any_order(tmp_path_factory, written, per_shard):
    folder = tmp_path_factory.mktemp("shards")
    encoded = [
        {key: value.encode() if key == "txt" else value for key, value in sample.items()}
        for sample in written
    ]
    rows = ShardRows(write_shards(folder, encoded, per_shard), "data.sets.x")
    assert len(rows) == len(written)
    for index in reversed(range(len(written))):
        row = rows.row(index)
        assert row["text"] == written[index]["txt"]
        assert {key: row[key] for key in written[index]["json"]} == written[index]["json"]
        for member in ("cls", "mask.png"):
            assert row.get(member) == written[index].get(member)
        assert rows.name(index) == f"part-{index // per_shard:03}.tar/{index % per_shard}"
    texts = [row["text"] for row in rows.scan(("text",))]
    assert texts == [sample["txt"] for sample in written]


def test_pictures_of_a_shard_go_by_short_names_too(tmp_path):
    sample = {"jpg": png(picture(1)), "target.png": png(picture(2)), "json": {"image_size": 3}}
    row = ShardRows(write_shards(tmp_path, [sample]), "x").row(0)
    assert row["image"] == row["jpg"] and row["target"] == row["target.png"] and row["image_size"] == 3
    assert np.array_equal(np.asarray(open_picture("target.png", row, None, "x")), pixels(2))


def test_compressed_and_broken_and_empty_shards_are_refused_with_the_fix(tmp_path):
    plain = tmp_path / "part-000.tar"
    write_shards(tmp_path, [{"txt": b"a"}])
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(DataSetError, match=r"data\.sets\.x: .*packed\.tar\.gz.*gunzip"):
        ShardRows(str(packed), "data.sets.x")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(DataSetError, match=r"empty\.tar holds no samples"):
        ShardRows(str(tmp_path / "empty.tar"), "x")
    with pytest.raises(DataSetError, match="no file matches"):
        ShardRows(str(tmp_path / "none-*.tar"), "x")


def test_torn_json_in_a_shard_is_a_broken_row(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name in ("1.json", "2.json"):
            member = tarfile.TarInfo(name)
            content = b'{"a": 1}' if name == "1.json" else b'{"a"'
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    rows = ShardRows(str(tmp_path / "a.tar"), "x")
    assert rows.row(0)["a"] == 1
    with pytest.raises(BrokenPictureError, match=r"a\.tar/1: .*no JSON"):
        rows.row(1)


@given(st.lists(st.text(max_size=10), min_size=1, max_size=6))
@settings(max_examples=15)
def test_tables_give_back_what_was_written_undecoded(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("table")
    rows = [{"image": picture(number), "text": text} for number, text in enumerate(texts)]
    table = open_parquet(
        parquet(folder, rows, {"image": PICTURE, "text": TEXT}).removeprefix("parquet:"), "x"
    )
    assert (len(table), table.columns) == (len(texts), ("image", "text"))
    assert list(table.scan(("text",))) == [{"text": text} for text in texts]
    for index in reversed(range(len(texts))):
        row = table.row(index)
        assert row["text"] == texts[index] and isinstance(row["image"]["bytes"], bytes)
        assert np.array_equal(np.asarray(open_picture(row["image"], row, None, "x")), pixels(index))


def test_a_saved_arrow_folder_is_read_by_its_split(tmp_path):
    table = datasets.Dataset.from_dict({"image": [png(picture(1))], "text": ["a"]})
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "saved"))
    saved = SetSettings(layout="own", path=f"arrow:{tmp_path / 'saved'}")
    assert np.array_equal(DataSet("mine", saved, DataSettings()).record(0).image, pixels(1))
    with pytest.raises(DataSetError, match=r"no split 'test'; it has train"):
        DataSet("mine", saved.model_copy(update={"split": "test"}), DataSettings())


def test_what_datasets_cannot_open_is_said_in_a_sentence(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with pytest.raises(DataSetError, match=r"data\.sets\.x: `datasets` cannot open 'parquet'"):
        open_parquet(str(tmp_path / "a.parquet"), "data.sets.x")


def test_lines_and_lists_are_read_together_by_index(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"n": 0, "s": "ü"}\n\n{"n": 1}\n', encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps([{"n": 2}]))
    rows = JsonRows(f"{tmp_path}/a.jsonl,{tmp_path}/b.json", "x")
    assert [rows.row(index)["n"] for index in (2, 0, 1)] == [2, 0, 1]
    assert [row["n"] for row in rows.scan(("n",))] == [0, 1, 2]


def test_json_that_is_no_list_of_objects_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    with pytest.raises(DataSetError, match=r"a\.json should hold a list, but holds dict"):
        JsonRows(str(tmp_path / "a.json"), "x")
    (tmp_path / "b.jsonl").write_text('3\n{"a"\n')
    rows = JsonRows(str(tmp_path / "b.jsonl"), "x")
    for index, message in ((0, "expected an object, got 3"), (1, "not a JSON object")):
        with pytest.raises(BrokenPictureError, match=message):
            rows.row(index)


def test_a_paired_folder_matches_names_and_reads_prompts(tmp_path):
    for side, ending in (("source", "jpg"), ("target", "png")):
        (tmp_path / side / "deep").mkdir(parents=True)
        picture(1).save(tmp_path / side / f"deep/a.{ending}")
    (tmp_path / "target/deep/a.txt").write_text(" make it night \n")
    rows = PairedFolder(str(tmp_path), "x")
    assert rows.row(0)["text"] == "make it night" and rows.name(0) == "deep/a"
    part = DataSet("p", SetSettings(layout="paired", path=f"folder:{tmp_path}"), DataSettings())
    assert np.array_equal(part.record(0).pairs[0].image, pixels(1))
    picture(2).save(tmp_path / "source/b.jpg")
    with pytest.raises(DataSetError, match=r"pictures without a partner: 1, .*for example b\)"):
        PairedFolder(str(tmp_path), "x")


@pytest.mark.parametrize(
    ("value", "message"),
    [(None, "missing"), (b"", "missing"), (b"no picture", "cannot be decoded"), (3, "int is no picture")],
)
def test_what_is_no_picture_is_named_and_nothing_takes_its_place(value, message):
    with pytest.raises(BrokenPictureError, match=rf"row 7: .*{message}"):
        open_picture(value, {}, None, "row 7")


@pytest.mark.parametrize(
    ("package", "path"), [("datasets", "parquet:{}"), ("webdataset", "tar:{}"), ("pycocotools", "coco")]
)
def test_a_package_that_is_not_installed_is_named_with_the_extra(package, path, tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.tariterators", None)
    with pytest.raises(DataSetError, match=rf"{package}.*pip install 'prw\[cologen\]'"):
        if path == "coco":
            decoded_segmentation([[0, 0, 1, 0, 1, 1]], 4, 4)
        DataSet("x", SetSettings(layout="own", path=path.format(tmp_path / "a")), DataSettings())


@given(
    size=st.tuples(st.integers(4, 30), st.integers(4, 30)).filter(lambda size: size[0] != size[1]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_run_lengths_become_the_mask_that_they_were_made_of(size, seed):
    mask = np.random.default_rng(seed).random(size) > 0.5
    assert np.array_equal(decoded_segmentation(run_lengths(mask), *size), mask)
    runs = np.diff(np.flatnonzero(np.diff(np.r_[-1, mask.T.ravel(), -1])), prepend=0).tolist()
    counts = runs[1:] if not mask[0, 0] else [0, *runs[1:]]
    listed = {"size": list(size), "counts": counts}
    assert np.array_equal(decoded_segmentation(listed, *size), mask)
    with pytest.raises(BrokenPictureError, match="pixels, its picture"):
        decoded_segmentation(run_lengths(mask), size[1], size[0])


@pytest.mark.parametrize("segmentation", [{"size": [4, 4]}, [[1, 2]], "x", [3]])
def test_what_is_no_segmentation_is_broken(segmentation):
    with pytest.raises(BrokenPictureError, match="segmentation"):
        decoded_segmentation(segmentation, 4, 6)

"""Names of files: whatever Unicode form they have, in any order in a tar, without what systems write."""

import io
import json
import tarfile
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.cologen.config.data import DataSettings, SetSettings
from recipes.cologen.data.folder import PictureFolder
from recipes.cologen.data.sets import DataSet
from recipes.cologen.data.sources.json_files import JsonRows
from recipes.cologen.data.sources.paired_folder import PairedFolder
from recipes.cologen.data.sources.rows import existing_path, is_system_file
from recipes.cologen.data.sources.shards import ShardRows
from recipes.cologen.errors import BrokenPictureError, DataSetError
from tests.recipes.cologen.data.published import picture, pixels, png, write_lines

NFC, NFD = (unicodedata.normalize(form, "Éclair/café") for form in ("NFC", "NFD"))
FORMS = pytest.mark.parametrize(("written", "named"), [(NFC, NFD), (NFD, NFC), (NFC, NFC)])
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


@FORMS
def test_a_file_is_found_whatever_the_form_of_its_letters(written, named, tmp_path):
    file = tmp_path / f"{written}.png"
    file.parent.mkdir()
    picture(1).save(file)
    assert existing_path(tmp_path, f"{named}.png") == file
    assert existing_path(tmp_path, "café.gif") == tmp_path / "café.gif"
    line = {"file_name": f"{named}.png", "text": "a cake"}
    write_lines(tmp_path / "metadata.jsonl", line)
    assert np.array_equal(PictureFolder(tmp_path).record(0).image, pixels(1))
    assert PictureFolder(tmp_path).picture_sizes("control").tolist() == [[24, 40, 24, 40]]
    part = DataSet("x", SetSettings(layout="own", path=f"folder:{tmp_path}"), DataSettings())
    assert np.array_equal(part.record(0).image, pixels(1))


def test_a_name_that_is_too_long_for_any_file_is_a_broken_row(tmp_path):
    write_lines(tmp_path / "rows.jsonl", {"image": "é" * 300 + ".png", "text": "a cake"})
    part = DataSet("x", SetSettings(layout="own", path=f"json:{tmp_path}/rows.jsonl"), DataSettings())
    with pytest.raises(BrokenPictureError, match="cannot be decoded"):
        part.record(0)


@FORMS
def test_pairs_and_prompts_match_whatever_the_form(written, named, tmp_path):
    for side, name in (("source", written), ("target", named)):
        (tmp_path / side / name).parent.mkdir(parents=True)
        picture(1).save(tmp_path / side / f"{name}.png")
    (tmp_path / "target" / f"{written}.txt").parent.mkdir(exist_ok=True)
    (tmp_path / "target" / f"{written}.txt").write_text("cut it")
    row = PairedFolder(str(tmp_path), "x").row(0)
    assert row["text"] == "cut it" and row["source"].endswith(f"{written}.png")


@FORMS
def test_additions_match_whatever_the_form(written, named, tmp_path):
    (tmp_path / "imgs").mkdir()
    picture(1).save(tmp_path / "imgs/a.png")
    write_lines(tmp_path / "rows.jsonl", {"img_path": f"{written}.png", "prompt": "a"})
    found = {"label": "cake", "bbox": [0, 0, 4, 4]}
    write_lines(tmp_path / "objects.jsonl", {"file_name": f"{named}.png", "objects": [found]})
    part = DataSet(
        "x",
        SetSettings(
            layout="journeydb", path=f"json:{tmp_path}/rows.jsonl", additions=f"{tmp_path}/objects.jsonl"
        ),
        DataSettings(),
    )
    assert len(part) == 1 and not part.left_out


def test_two_names_of_one_form_are_refused_by_that_word(tmp_path):
    for side in ("source", "target"):
        (tmp_path / side).mkdir()
        for name in ("caf\u00e9", "cafe\u0301"):
            picture(1).save(tmp_path / side / f"{name}.png")
    with pytest.raises(DataSetError, match=r"two pictures of one name.*Unicode forms"):
        PairedFolder(str(tmp_path), "x")


@pytest.mark.parametrize("name", ["._a.jpg", "d/._a.jpg", "__MACOSX/a.jpg", "d/.DS_Store", "Thumbs.db"])
def test_what_a_system_writes_is_known_by_its_name(name):
    assert is_system_file(name)


@pytest.mark.parametrize("name", ["a.jpg", "d/a._b.jpg", "_a.jpg", "MACOSX/a.jpg", ".hidden.jpg"])
def test_what_a_user_writes_is_kept(name):
    assert not is_system_file(name)


def shard(folder, members):
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return ShardRows(str(folder / "a.tar"), "x")


@given(st.integers(1, 4), st.permutations(range(12)))
@settings(max_examples=40)
def test_members_of_a_sample_belong_together_wherever_they_lie(tmp_path_factory, count, order):
    members = [
        (f"d/{number}.{extension}", f"{number}{extension}".encode())
        for number in range(count)
        for extension in ("txt", "cls", "json")
    ]
    members = [(n, b'{"n": %d}' % int(n[2]) if n.endswith("json") else c) for n, c in members]
    shuffled = [members[place] for place in order if place < len(members)]
    noise = [("._0.txt", APPLE_DOUBLE), ("__MACOSX/d/._0.cls", APPLE_DOUBLE), ("d/.DS_Store", b"Bud1")]
    rows = shard(tmp_path_factory.mktemp("tar"), [noise[0], *shuffled[:2], *noise[1:], *shuffled[2:]])
    assert len(rows) == count
    found = {rows.row(index)["n"]: rows.row(index) for index in range(count)}
    for number in range(count):
        assert found[number]["text"] == f"{number}txt" and found[number]["cls"] == f"{number}cls".encode()
    firsts = list(dict.fromkeys(int(name[2]) for name, _ in shuffled))
    assert [row["n"] for row in rows.scan(("n",))] == firsts


def test_a_name_that_comes_again_is_another_sample(tmp_path):
    rows = shard(tmp_path, [("1.txt", b"a"), ("1.cls", b"1"), ("1.txt", b"b"), ("1.cls", b"2")])
    assert [(rows.row(index)["text"], rows.row(index)["cls"]) for index in range(2)] == [
        ("a", b"1"),
        ("b", b"2"),
    ]


def test_a_tar_of_system_files_alone_holds_no_samples(tmp_path):
    with pytest.raises(DataSetError, match="holds no samples"):
        shard(tmp_path, [("d/._1.jpg", APPLE_DOUBLE)])


def test_system_files_beside_pictures_and_lists_are_passed_over(tmp_path):
    for side in ("source", "target"):
        (tmp_path / side / "__MACOSX").mkdir(parents=True)
        picture(1).save(tmp_path / side / "a.png")
    (tmp_path / "source/._a.png").write_bytes(APPLE_DOUBLE)
    (tmp_path / "target/__MACOSX/b.png").write_bytes(APPLE_DOUBLE)
    assert len(PairedFolder(str(tmp_path), "x")) == 1
    (tmp_path / "lists/__MACOSX").mkdir(parents=True)
    (tmp_path / "lists/a.json").write_text(json.dumps([{"n": 1}]))
    (tmp_path / "lists/__MACOSX/a.json").write_bytes(APPLE_DOUBLE)
    assert len(JsonRows(f"{tmp_path}/lists/**/*.json", "x")) == 1


def test_a_tar_packed_by_macos_is_the_set_that_was_packed(tmp_path):
    members = [("a/._1.png", APPLE_DOUBLE), ("a/1.png", png(picture(1))), ("a/1.txt", b"a cat")]
    shard(tmp_path, [*members, ("a/._1.txt", APPLE_DOUBLE)])
    part = DataSet("x", SetSettings(layout="own", path=f"tar:{tmp_path}/a.tar"), DataSettings())
    assert len(part) == 1 and np.array_equal(part.record(0).image, pixels(1))

"""Captions in every encoding that can be told apart; others are broken rows, and no mark is trained on."""

import codecs
import io
import json
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.cologen.config_data import DataSettings, SetSettings
from recipes.cologen.data.folder import PictureFolder
from recipes.cologen.data.sets import DataSet
from recipes.cologen.data.sources.json_files import JsonRows
from recipes.cologen.data.sources.paired_folder import PairedFolder
from recipes.cologen.data.sources.shards import ShardRows
from recipes.cologen.data.text import decoded_text, has_several, is_text, text_of
from recipes.cologen.errors import BrokenPictureError, DataSetError, FolderDataError
from tests.recipes.cologen.data.published import PICTURE, TEXT, parquet, picture, png

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
texts = st.text(st.characters(exclude_characters="\x00\ufeff", exclude_categories=["Cs"]), max_size=30)


@given(texts, st.sampled_from(ENCODINGS))
@settings(max_examples=80)
def test_a_text_is_what_was_written_without_its_mark(text, encoding):
    assert decoded_text(text.encode(encoding)) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("un café".encode("cp1252"), r"not UTF-8.*cp1252.*iconv"),
        ("a cat".encode("utf-16-le"), r"NUL.*utf-16le"),
        ("a cat".encode("utf-16-be"), r"NUL.*utf-16be"),
        ("un café".encode("utf-16-le"), r"NUL.*utf-16le"),  # which is no UTF-8 either
        ("un café".encode("utf-16-be"), r"NUL.*utf-16be"),
    ],
)
def test_an_encoding_that_cannot_be_told_is_no_text(content, message):
    with pytest.raises(BrokenPictureError, match=message):
        decoded_text(content)


def test_of_several_captions_the_first_that_says_something_is_read():
    assert text_of(["", None, " a cat ", "a dog"]) == "a cat"
    assert has_several(["a cat", "", "a dog"]) and not has_several(["a cat", ""]) and not has_several("a cat")
    assert not is_text("\ufeff ") and not is_text([]) and not is_text(3)


@pytest.mark.parametrize("text", ["a\x00 c\x00a\x00t\x00", "half \ud83d"])
def test_text_that_was_decoded_wrongly_before_is_refused(text):
    with pytest.raises(BrokenPictureError, match="wrong encoding"):
        text_of(text)


def shard(folder, members):
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(folder / "a.tar")


def test_one_bad_text_does_not_close_its_shard(tmp_path):
    captions = ["a cat".encode("utf-16"), "café".encode("cp1252"), b"\xef\xbb\xbfa dog", b"a cow"]
    members = [(f"{n}.txt", text) for n, text in enumerate(captions)]
    members += [(f"{n}.png", png(picture(n))) for n in range(4)]
    path = shard(tmp_path, members)
    part = DataSet("mine", SetSettings(layout="own", path=f"tar:{path}"), DataSettings())
    assert len(part) == 4 and part.without_caption == 0
    assert [part.record(index).caption for index in (0, 2, 3)] == ["a cat", "a dog", "a cow"]
    with pytest.raises(BrokenPictureError, match=r"mine/a\.tar/1: its text is not UTF-8"):
        part.record(1)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_prompts_of_a_paired_folder_are_read_in_their_encoding(encoding, tmp_path):
    for side in ("source", "target"):
        (tmp_path / side).mkdir()
        for name in ("a", "b"):
            picture(1).save(tmp_path / side / f"{name}.png")
    (tmp_path / "target/a.txt").write_bytes("mach es grün\n".encode(encoding))
    (tmp_path / "target/b.txt").write_bytes("grün".encode("cp1252"))
    rows = PairedFolder(str(tmp_path), "x")
    assert rows.row(0)["text"] == "mach es grün"
    first, second = rows.scan(("text",))
    assert first["text"] == "mach es grün" and isinstance(second, BrokenPictureError)
    with pytest.raises(BrokenPictureError, match=r"b\.txt: its text is not UTF-8"):
        rows.row(1)


@pytest.mark.parametrize("encoding", MARKED)
def test_lines_of_json_are_read_in_their_encoding(encoding, tmp_path):
    lines = "".join(json.dumps({"n": n, "text": "grün"}, ensure_ascii=False) + "\n" for n in range(3))
    (tmp_path / "rows.jsonl").write_bytes(MARKED[encoding] + lines.encode(encoding))
    rows = JsonRows(str(tmp_path / "rows.jsonl"), "x")
    assert [rows.row(index) for index in range(3)] == [{"n": n, "text": "grün"} for n in range(3)]
    assert list(rows.scan(("n",))) == [rows.row(index) for index in range(3)]


def test_a_bad_line_of_json_is_one_row(tmp_path):
    good = [json.dumps({"text": text, "image": "a.png"}).encode() for text in ("a cat", "a dog")]
    bad = b'{"text": "caf\xe9", "image": "a.png"}'
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([good[0], bad, b"[1]", good[1]]))
    picture(1).save(tmp_path / "a.png")
    part = DataSet("mine", SetSettings(layout="own", path=f"json:{tmp_path}/rows.jsonl"), DataSettings())
    assert [part.record(index).caption for index in (0, 3)] == ["a cat", "a dog"]
    for index, message in ((1, "not a JSON object in UTF-8"), (2, "expected an object")):
        with pytest.raises(BrokenPictureError, match=message):
            part.record(index)


def test_no_mark_is_trained_on_and_lists_are_counted(tmp_path):
    rows = [
        {"image": picture(1), "text": "\ufeffa cat"},
        {"image": picture(2), "text": "a \ufeffdog"},
    ]
    path = parquet(tmp_path, rows, {"image": PICTURE, "text": TEXT})
    part = DataSet("mine", SetSettings(layout="own", path=path), DataSettings())
    assert [part.record(index).caption for index in range(2)] == ["a cat", "a dog"]
    assert part.several_captions == 0
    picture(1).save(tmp_path / "a.png")
    lines = [
        {"image": "a.png", "text": ["", "a cat", "a tabby"]},
        {"image": "a.png", "text": "a dog"},
        # The second is never read, so what is wrong with it is no fault of the row.
        {"image": "a.png", "text": ["a cow", "b\x00d", "\ufeff "]},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    part = DataSet("mine", SetSettings(layout="own", path=f"json:{tmp_path}/rows.jsonl"), DataSettings())
    assert part.record(0).caption == "a cat" and part.several_captions == 2 and part.without_caption == 0
    assert part.record(2).caption == "a cow"


def test_half_a_character_is_a_broken_row(tmp_path):
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "text": "half \\ud83d"}\n' * 2)
    part = DataSet("mine", SetSettings(layout="own", path=f"json:{tmp_path}/rows.jsonl"), DataSettings())
    with pytest.raises(BrokenPictureError, match="wrong encoding"):
        part.record(0)


@pytest.mark.parametrize("encoding", MARKED)
def test_a_folders_metadata_is_read_in_its_encoding(encoding, tmp_path):
    picture(1).save(tmp_path / "a.png")
    line = {
        "file_name": "a.png",
        "text": ["\ufeffein Hündchen", "a dog"],
        "objects": [{"label": "\ufeffdog", "bbox": [0, 0, 8, 8]}],
        "pairs": [{"task": "editing", "image": "a.png", "prompt": "\ufeffmake it green"}],
    }
    text = 2 * (json.dumps(line, ensure_ascii=False) + "\r\n")
    (tmp_path / "metadata.jsonl").write_bytes(MARKED[encoding] + text.encode(encoding))
    folder = PictureFolder(tmp_path)
    assert folder.record(1).caption == "ein Hündchen"
    record = folder.record(0)
    assert record.caption == "ein Hündchen" and record.objects[0].label == "dog"
    assert record.pairs[0].prompt == "make it green"


def test_a_folders_metadata_in_an_old_encoding_is_named_by_line(tmp_path):
    picture(1).save(tmp_path / "a.png")
    text = '{"file_name": "a.png", "text": "a dog"}\n{"file_name": "a.png", "text": "café"}\n'
    (tmp_path / "metadata.jsonl").write_bytes(text.encode("cp1252"))
    with pytest.raises(FolderDataError, match=r"line 2: not a JSON object in UTF-8.*iconv"):
        PictureFolder(tmp_path)


def test_a_list_in_utf16_without_a_mark_says_so(tmp_path):
    (tmp_path / "rows.json").write_bytes('[{"a": 1}]'.encode("utf-16-le"))
    with pytest.raises(DataSetError, match=r"rows\.json cannot be read as JSON.*NUL"):
        JsonRows(str(tmp_path / "rows.json"), "x")


def test_a_shards_json_may_have_a_mark(tmp_path):
    rows = ShardRows(shard(tmp_path, [("1.json", '{"text": "grün"}'.encode("utf-16"))]), "x")
    assert rows.row(0)["text"] == "grün"

"""Whatever is wrong with a picture file, the decoder raises one error; training skips and counts the row."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from recipes.cologen.config.data import DataSettings, SetSettings
from recipes.cologen.config.training import DropoutSettings
from recipes.cologen.data.decoding import as_rgb, open_upright, stored_size, upright_stand_in
from recipes.cologen.data.folder import PictureFolder
from recipes.cologen.data.picture_files import read_source
from recipes.cologen.data.sampler import SampleIndex
from recipes.cologen.data.sets import DataSet
from recipes.cologen.errors import BrokenPictureError, FolderDataError, PictureError
from recipes.cologen.training.input.batches import Examples
from tests.recipes.cologen.data.published import PICTURE, TEXT, parquet, picture, pixels, png


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_large_text():
    """A PNG with more text than Pillow reads, which says so with a ValueError."""
    info = PngInfo()
    info.add_text("note", "a" * (2 * 1024 * 1024), zip=True)
    return saved(picture(1), "PNG", pnginfo=info)


def jpeg_with_exif(exif):
    return saved(picture(1), "JPEG", exif=b"Exif\x00\x00" + exif)


def exif(*entries):
    """An EXIF directory of entries (tag, type, count, value), by ascending tag."""
    packed = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in sorted(entries))
    return b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + packed + b"\x00" * 4


TURNED = (0x0112, 3, 1, b"\x06\x00\x00\x00")
"""An orientation for which Pillow turns the picture, and writes its EXIF data anew."""


def huge_png():
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


WRONG = {
    "too much text": with_large_text(),
    "EXIF with a TypeError": jpeg_with_exif(exif(TURNED, (0x011A, 2, 1, b"\x00" * 4))),
    "EXIF with a struct.error": jpeg_with_exif(exif(TURNED, (0x0111, 4, 1, b"\xff" * 4))),
    "EXIF with an AttributeError": jpeg_with_exif(exif(TURNED, (0x010F, 5, 1, b"\x00" * 4))),
    "EXIF with a ValueError": jpeg_with_exif(exif(TURNED, (0x8769, 6, 1, b"\xff" * 4))),
    "cut off": png(picture(1))[:200],
    "cut off JPEG": saved(picture(1), "JPEG")[:300],
    "larger than is decoded": huge_png(),
    "no picture": b"GIF89a",
    "empty": b"",
    "text": b"<svg></svg>",
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_file_is_one_error(content):
    with pytest.raises(BrokenPictureError) as told:
        open_upright(io.BytesIO(content))
    assert str(told.value)


@given(
    st.sampled_from([saved(picture(1), kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    st.floats(0.3, 1),
)
@example(with_large_text(), [], 1.0)
@settings(max_examples=150, deadline=None)
def test_spoilt_bytes_are_read_or_are_that_error(content, changes, kept):
    spoilt = bytearray(content[: int(len(content) * kept)])
    for where, value in changes:
        if spoilt:
            spoilt[min(int(where * len(spoilt)), len(spoilt) - 1)] = value
    for read in (lambda file: as_rgb(open_upright(file)), stored_size, upright_stand_in):
        try:
            read(io.BytesIO(bytes(spoilt)))
        except BrokenPictureError as error:
            assert str(error)


tags = st.sampled_from([0x010F, 0x0111, 0x0112, 0x011A, 0x0132, 0x0201, 0x8769, 0x8825, 0x9000, 0xA005])
entries = st.tuples(
    tags, st.integers(0, 13), st.sampled_from([0, 1, 2, 1000]), st.binary(min_size=4, max_size=4)
)


@given(st.lists(entries, max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_exif_is_read_or_is_that_error(given_entries):
    content = jpeg_with_exif(exif(TURNED, *given_entries))
    for read in (open_upright, stored_size):
        try:
            read(io.BytesIO(content))
        except BrokenPictureError as error:
            assert str(error)


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_broken_row_is_skipped_counted_and_named(content, tmp_path):
    whole = [{"image": png(picture(number)), "text": "a"} for number in range(3)]
    rows = [{"image": {"bytes": row["image"], "path": None}, "text": "a"} for row in whole]
    rows.append({"image": {"bytes": content, "path": None}, "text": "a"})
    path = parquet(tmp_path, rows, {"image": PICTURE, "text": TEXT})
    part = DataSet("mine", SetSettings(layout="own", path=path), DataSettings())
    assert part.picture_sizes("control").shape == (4, 4)
    prepared = Examples(part, "control", DropoutSettings(text=0, source=0))[SampleIndex(3, 5)]
    assert len(prepared.skipped) >= 1 and prepared.skipped[0].startswith("mine/3: ")
    assert any(np.array_equal(prepared.target, pixels(number)) for number in range(3))


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_broken_picture_of_a_command_is_named(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(PictureError, match=r"a\.png.*(cannot be read as a picture|too many pixels)"):
        read_source(tmp_path / "a.png")


def test_an_orientation_that_is_none_turns_nothing():
    for entry in ((0x0112, 2, 4, b"six\x00"), (0x0112, 3, 1, b"\x2a\x00\x00\x00")):
        content = jpeg_with_exif(exif(entry))
        assert stored_size(io.BytesIO(content)) == open_upright(io.BytesIO(content)).size == (40, 24)


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_broken_picture_of_a_folder_is_told_by_its_line_or_is_a_broken_record(content, tmp_path):
    picture(0).save(tmp_path / "whole.png")
    (tmp_path / "a.png").write_bytes(content)
    lines = [{"file_name": name, "text": "a"} for name in ("whole.png", "a.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    try:
        folder = PictureFolder(tmp_path)
    except FolderDataError as error:
        assert "line 2: a.png is not a picture that can be read" in str(error)
        return
    with pytest.raises(BrokenPictureError, match=r"line 2: a\.png is broken"):
        folder.record(1)


def test_deep_pictures_are_stretched_over_their_finite_values():
    values = np.array([[-1.0, 3.0, np.nan, np.inf, -np.inf, 1.0]], dtype=np.float32)
    levels = np.asarray(as_rgb(Image.fromarray(values)))[0, :, 0]
    assert levels.tolist() == [0, 255, 0, 0, 0, 128]

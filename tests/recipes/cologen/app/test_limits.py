"""What the page takes: pictures within limits, refused before they are decoded, whatever the bytes are."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from recipes.cologen.app.limits import (
    FLATTENED,
    MOST_SAID,
    Limits,
    check_prompt,
    in_short,
    read_rgb,
    read_strokes,
    read_upload,
)
from recipes.cologen.data.picture_files import read_source
from recipes.cologen.errors import PictureError, PromptError

LIMITS = Limits(upload_bytes=20_000, pixels=10_000, letters=20)
NOISE = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **how)
    return held.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size and holds nothing that could be decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"?") + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_is_read_as_the_command_reads_it(tmp_path: Path, kind: str, mode: str) -> None:
    path = tmp_path / "picture.bin"
    path.write_bytes(encoded(Image.fromarray(NOISE).convert(mode), kind))
    assert np.array_equal(read_rgb(path, LIMITS), read_source(path).image)
    assert np.array_equal(read_rgb(path.read_bytes(), LIMITS), read_source(path).image)


def test_a_turned_photo_is_turned_back() -> None:
    exif = Image.Exif()
    exif[274] = 6
    assert read_rgb(encoded(Image.fromarray(NOISE), "JPEG", exif=exif), LIMITS).shape == (50, 30, 3)


def see_through(mode: str) -> Image.Image:
    """A picture whose left half is transparent, with red hidden there, and whose right half is gray."""
    picture = Image.new("RGBA", (6, 4), (200, 20, 20, 0))
    picture.paste((90, 90, 90, 255), (3, 0, 6, 4))
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture)[..., 2].astype(np.uint16) * 257)
    return picture.convert(mode)


@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("RGBA", {}),
        ("LA", {}),
        ("P", {}),
        ("I;16", {"transparency": 20 * 257}),
        ("RGBA", {"kind": "WEBP", "lossless": True}),
    ],
    ids=["rgba", "gray", "palette", "16 bits", "webp"],
)
def test_what_is_transparent_is_white_to_the_model_and_that_is_said(
    mode: str, how: dict[str, object]
) -> None:
    read = read_upload(encoded(see_through(mode), **{"kind": "PNG"} | how), LIMITS)
    assert (read.image[:, :3] == 255).all() and (abs(read.image[:, 3:].astype(int) - 90) <= 6).all()
    assert read.notice == FLATTENED


def test_an_alpha_of_half_lets_half_of_the_white_through_and_a_full_one_is_no_news() -> None:
    half = read_upload(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128))), LIMITS)
    assert abs(int(half.image[0, 0, 0]) - 127) <= 1 and half.notice
    whole = read_upload(encoded(Image.fromarray(NOISE).convert("RGBA")), LIMITS)
    assert np.array_equal(whole.image, NOISE) and whole.notice == ""


@given(st.text(min_size=1, max_size=400), st.sampled_from(["no {!r} here", "no {} here", "a {}."]))
def test_a_refusal_does_not_repeat_what_is_long(prompt: str, message: str) -> None:
    said = in_short(message.format(prompt), prompt)
    assert max(map(len, said.split()), default=0) <= 80 and len(said) <= MOST_SAID + 3
    if len(repr(prompt)) < 60:
        assert said == message.format(prompt)


def test_a_long_prompt_is_cut_short_and_the_advice_after_it_is_kept() -> None:
    prompt = "red circle " * 100
    said = in_short(f"the prompt has 202 tokens: {prompt!r}. Shorten it.", prompt)
    assert len(said) < 130 and said.endswith("...'. Shorten it.")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (bomb(101, 100), r"101x100 pixels, 0\.0 million"),
        (bomb(60_000, 60_000), r"(claims more than the|at most) 0\.0 million .*smaller"),
        (bomb(100, 100), "broken"),
        (b"\0" * 20_001, r"0\.0 MiB; at most 0\.0"),
        (b"", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"GIF89a" + b"\1\0\1\0" + b"\0" * 20, "not a picture"),
        (encoded(Image.fromarray(NOISE))[:200], "broken"),
    ],
    ids=["large", "a bomb", "empty inside", "long", "nothing", "svg", "eps", "gif", "cut off"],
)
def test_what_is_no_picture_or_too_large_is_refused_in_words(file: bytes, message: str) -> None:
    with pytest.raises(PictureError, match=message):
        read_rgb(file, LIMITS)
    with pytest.raises(PictureError):
        read_strokes(file, LIMITS) if len(file) <= LIMITS.upload_bytes else read_rgb(file, LIMITS)


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: encoded_start() + tail))
def test_no_bytes_do_more_than_be_refused(file: bytes) -> None:
    for read in (read_rgb, read_strokes):
        try:
            image = read(file, LIMITS)
        except PictureError as error:
            assert "Traceback" not in str(error)
        else:
            assert image.dtype == np.uint8 and image.ndim == 3


def encoded_start() -> bytes:
    return encoded(Image.fromarray(NOISE))[:60]


def test_strokes_are_where_something_was_painted_whatever_the_colour() -> None:
    layer = np.zeros((4, 6, 4), np.uint8)
    layer[1:3, 2:5] = (0, 0, 0, 255)
    mask = read_strokes(encoded(Image.fromarray(layer)), LIMITS)
    assert mask[1:3, 2:5].min() == 255 and mask.sum() == 6 * 3 * 255


@pytest.mark.parametrize(("prompt", "message"), [(" \n", "no prompt"), ("x" * 21, "21 letters; at most 20")])
def test_a_prompt_is_neither_empty_nor_endless(prompt: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        check_prompt(prompt, LIMITS)
    check_prompt("x" * 20, LIMITS)

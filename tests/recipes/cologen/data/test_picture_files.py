"""Picture files: enlarging and its inverse, holes, and writing that leaves no half file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from recipes.cologen.data.picture_files import (
    check_output,
    cut_hole,
    enlarge,
    fit_picture,
    read_mask,
    read_source,
    write_picture,
)
from recipes.cologen.data.reading import opaque
from recipes.cologen.errors import PictureError

sides = st.integers(1, 9)
pictures = st.tuples(sides, sides).flatmap(lambda size: arrays(np.uint8, (*size, 3)))


@given(image=pictures, factor=st.integers(1, 7))
def test_an_enlarged_picture_comes_back_exactly(image: np.ndarray, factor: int) -> None:
    height, width = image.shape[:2]
    fitted = fit_picture(enlarge(image, factor), height, width)
    assert np.array_equal(fitted.image, image) and fitted.notice is None


@given(image=pictures, height=sides, width=sides)
def test_any_picture_is_brought_to_the_size_and_loss_is_said(
    image: np.ndarray, height: int, width: int
) -> None:
    fitted = fit_picture(image, height, width, name="mine")
    assert fitted.image.shape == (height, width, 3) and fitted.image.dtype == np.uint8
    factor = image.shape[0] // height
    exact = image.shape[:2] == (factor * height, factor * width) and np.array_equal(
        enlarge(image[::factor, ::factor], factor), image
    )
    assert (fitted.notice is None) == exact
    assert exact or f"mine is {image.shape[1]}x{image.shape[0]}" in str(fitted.notice)


def test_one_odd_pixel_makes_it_no_enlarged_picture() -> None:
    large = enlarge(np.zeros((4, 4, 3), np.uint8), 8)
    large[5, 5, 1] = 1
    assert fit_picture(large, 4, 4).notice is not None


@given(hole=arrays(np.bool_, (5, 6)).filter(lambda values: values.any() and not values.all()))
def test_a_mask_and_a_black_hole_give_the_same_source(hole: np.ndarray) -> None:
    image = np.full((5, 6, 3), 9, np.uint8)
    mask = (hole[..., None] * np.full(3, 255)).astype(np.uint8)
    source = cut_hole(image, mask)
    assert (source[hole] == 0).all() and (source[~hole] == 9).all() and (image == 9).all()
    assert np.array_equal(cut_hole(source, None), source)


PAINTED = st.tuples(sides, sides).flatmap(lambda size: arrays(np.uint8, (*size, 4)))


@given(pixels=PAINTED)
def test_transparent_parts_are_on_paper_and_opaque_ones_are_as_they_were(pixels: np.ndarray) -> None:
    for paper, level in (("white", 255), ("black", 0)):
        laid, transparent = opaque(Image.fromarray(pixels), paper)
        image = np.asarray(laid)
        alpha = pixels[..., 3:].astype(float) / 255
        blended = alpha * pixels[..., :3] + (1 - alpha) * level
        assert np.abs(image - blended).max() <= 1 and image.dtype == np.uint8
        whole = pixels[..., 3] == 255
        assert np.array_equal(image[whole], pixels[whole][:, :3]) and transparent == (not whole.all())


CLEAR = {
    "gray and alpha": lambda: Image.new("LA", (2, 1), (9, 0)),
    "premultiplied": lambda: Image.new("RGBA", (2, 1), (9, 9, 9, 0)).convert("RGBa"),
    "a palette": lambda: Image.new("RGBA", (2, 1), (9, 9, 9, 0)).quantize(4),
}


@pytest.mark.parametrize("make", CLEAR.values(), ids=CLEAR)
def test_every_kind_of_transparency_counts(make: Callable[[], Image.Image]) -> None:
    laid, transparent = opaque(make())
    assert transparent and (np.asarray(laid) == 255).all()


def test_a_colour_that_stands_for_nothing_is_transparent_and_stays_said(tmp_path: Path) -> None:
    clear = Image.new("RGB", (2, 1), (9, 9, 9))
    clear.putpixel((1, 0), (1, 2, 3))
    clear.save(tmp_path / "x.png", transparency=(9, 9, 9))
    read = read_source(tmp_path / "x.png")
    assert read.image.tolist() == [[[255, 255, 255], [1, 2, 3]]]
    assert "x.png has transparent parts" in str(read.notice)
    clear.save(tmp_path / "x.png")
    read = read_source(tmp_path / "x.png")
    assert np.array_equal(read.image, np.asarray(clear)) and read.notice is None
    deep = Image.fromarray(np.array([[514, 257]], np.uint16))
    deep.save(tmp_path / "x.png", transparency=514)
    assert read_source(tmp_path / "x.png").image.tolist() == [[[255] * 3, [1] * 3]]
    deep.save(tmp_path / "x.png")
    assert read_source(tmp_path / "x.png").image.tolist() == [[[2] * 3, [1] * 3]]


def test_a_mask_paints_where_it_is_white_and_there(tmp_path: Path) -> None:
    hole = np.zeros((4, 4, 4), np.uint8)
    hole[..., :3], hole[1, 1, 3], hole[2, 2, 3] = 255, 255, 120  # white all over, seen at two pixels
    Image.fromarray(hole).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", "mine")
    assert "mine has transparent parts; nothing is painted there" in str(mask.notice)
    source = cut_hole(np.full((4, 4, 3), 9, np.uint8), mask.image)
    assert [tuple(place) for place in np.argwhere((source == 0).all(-1))] == [(1, 1)]


@given(level=st.integers(0, 255))
def test_a_mask_paints_above_half_of_its_brightest_point(level: int) -> None:
    mask = np.zeros((1, 3, 3), np.uint8)
    mask[0, 0], mask[0, 1] = 255, level
    source = cut_hole(np.full((1, 3, 3), 9, np.uint8), mask)
    assert (source == 0).all(-1).tolist() == [[True, level > 127, False]]


def test_hole_and_picture_come_to_a_size_together() -> None:
    image = np.full((8, 16, 3), 200, np.uint8)
    mask = np.zeros((8, 16, 3), np.uint8)
    mask[2:6, 6:10] = 255
    seen = cut_hole(image, mask, (4, 4))  # the middle, 8 x 8, at half the size
    assert [tuple(place) for place in np.argwhere((seen == 0).all(-1))] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert np.array_equal(cut_hole(image, mask[::2, ::2], (4, 4)), seen)  # stretched over the picture
    holed = image.copy()
    holed[mask[..., 0] > 0] = 0
    black = (cut_hole(holed, None, (4, 4)) == 0).all(-1)
    assert np.array_equal(black, (seen == 0).all(-1))


def test_another_shape_keeps_its_middle_and_its_proportions() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    fitted = fit_picture(wide, 20, 20, "mine")
    assert fitted.image.min() > 190
    assert fitted.notice == "mine is 30x10 pixels; its middle, 10x10, was resized to the model's 20x20."


def test_the_notice_of_a_narrow_middle_has_no_zero() -> None:
    fitted = fit_picture(np.zeros((100, 1, 3), np.uint8), 1, 64, "mine")
    assert fitted.notice == "mine is 1x100 pixels; its middle, 1x1, was resized to the model's 64x1."


def test_no_hole_and_nothing_but_a_hole_are_refused() -> None:
    white, black = np.full((4, 4, 3), 255, np.uint8), np.zeros((4, 4, 3), np.uint8)
    for image, mask, message in (
        (white, None, "give --mask"),
        (white, black, "no white pixel"),
        (white, white, "whole picture"),
        (black, None, "whole picture"),
    ):
        with pytest.raises(PictureError, match=message):
            cut_hole(image, mask)


@given(image=pictures)
def test_a_written_picture_reads_back(tmp_path_factory: pytest.TempPathFactory, image: np.ndarray) -> None:
    path = tmp_path_factory.getbasetemp() / "picture.png"
    write_picture(image, path)
    assert np.array_equal(read_source(path).image, image)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    write_picture(np.zeros((4, 4, 3), np.uint8), path)
    before = path.read_bytes()

    def fail(self: Image.Image, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_picture(np.ones((4, 4, 3), np.uint8), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_an_output_is_checked_before_the_work(tmp_path: Path) -> None:
    check_output(tmp_path / "out.png")
    check_output(tmp_path / "OUT.JPG")
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "gone" / "out.png", "there is no folder"),
        (tmp_path / "out", "does not end like a picture"),
        (tmp_path / "out.psd", "does not end like a picture"),  # can be read, not written
    ):
        with pytest.raises(PictureError, match=message):
            check_output(path)


DEEP = {
    "16 bits": ("x.png", lambda levels: levels.astype(np.uint16) * 257),
    "32 bits": ("x.tiff", lambda levels: levels.astype(np.int32) * 257),
    "float": ("x.tiff", lambda levels: (levels / 255).astype(np.float32)),
    "float of a range of its own": ("x.tiff", lambda levels: (levels / 50 - 2).astype(np.float32)),
}


@pytest.mark.parametrize(("name", "deepen"), DEEP.values(), ids=DEEP)
def test_a_deep_picture_keeps_its_grays(
    tmp_path: Path, name: str, deepen: Callable[[np.ndarray], np.ndarray]
) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    Image.fromarray(deepen(levels)).save(tmp_path / name)
    assert np.array_equal(read_source(tmp_path / name).image, levels[..., None].repeat(3, axis=-1))


def test_a_dark_deep_picture_stays_dark_and_a_white_one_white(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    for level in (0, 40, 255):
        Image.fromarray(np.full((4, 4), level * 257, np.uint16)).save(path)
        assert (read_source(path).image == level).all()


def test_floats_that_are_no_numbers_are_black(tmp_path: Path) -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0.5, 1.0]], np.float32)
    Image.fromarray(values).save(tmp_path / "x.tiff")
    assert read_source(tmp_path / "x.tiff").image[0, :, 0].tolist() == [0, 0, 0, 128, 255]


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n torn"])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=r"x\.png cannot be read"):
        read_source(path)
    with pytest.raises(PictureError, match="there is no picture"):
        read_source(tmp_path / "gone.png")

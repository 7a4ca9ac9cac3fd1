"""One file, one tensor: training, generate, the page and the pipelines read pictures and masks alike."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from recipes.cologen.app.limits import Limits, read_upload
from recipes.cologen.data.folder import PictureFolder
from recipes.cologen.data.framing import framed
from recipes.cologen.data.picture_files import cut_hole, fit_picture, read_mask, read_source
from recipes.cologen.data.raw import RawRecord
from recipes.cologen.data.reading import mask_of, opaque
from recipes.cologen.data.record import Record
from recipes.cologen.pipeline.sources import PictureRequest, prepare_sources
from recipes.cologen.pipeline.tasks import shows_classes

MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")
FORMS = ("a PNG", "a PNG with a clear colour", "a JPEG", "a WebP")
SIDES = st.integers(2, 24)
COLOURS = np.array([[0, 0, 0], [120, 120, 120], [180, 120, 120], [4, 250, 7]], np.uint8)


@st.composite
def files(draw: st.DrawFn, size: tuple[int, int] | None = None) -> bytes:
    """A picture's file of any mode, format and size; half of them with something transparent in it."""
    height, width = size or (draw(SIDES), draw(SIDES))
    pixels = draw(arrays(np.uint8, (height, width, 4)))
    mode, form = draw(st.sampled_from(MODES)), draw(st.sampled_from(FORMS))
    made = Image.fromarray(pixels)
    if mode == "I;16":
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        picture = made.quantize(8) if mode == "P" else made.convert(mode)
    held = io.BytesIO()
    if form == "a JPEG":
        picture.convert("RGB").save(held, "JPEG", quality=70)
    elif form == "a WebP":
        made.save(held, "WEBP", lossless=True)
    elif form == "a PNG with a clear colour" and mode in ("L", "RGB"):
        clear = tuple(int(level) for level in pixels[0, 0, :3]) if mode == "RGB" else int(pixels[0, 0, 0])
        picture.save(held, "PNG", transparency=clear)
    else:
        picture.save(held, "PNG")
    return held.getvalue()


def record_of(folder: Path, size: tuple[int, int] | None, image: bytes, mask: bytes | None = None) -> Record:
    """The record that training makes of a picture and, if there is one, its object's mask."""
    (folder / "image").write_bytes(image)
    line: dict[str, Any] = {"file_name": "image", "text": "a cat"}
    if mask is not None:
        (folder / "mask").write_bytes(mask)
        line["objects"] = [{"label": "cat", "mask": "mask"}]
    (folder / "metadata.jsonl").write_text(json.dumps(line))
    return PictureFolder(folder, size).record(0)


@given(image=files(), size=st.tuples(SIDES, SIDES))
@settings(max_examples=150, deadline=None)
def test_a_picture_is_one_picture_everywhere(
    tmp_path_factory: pytest.TempPathFactory, image: bytes, size: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("one")
    trained = record_of(folder, size, image).image
    by_command = fit_picture(read_source(folder / "image").image, *size).image
    on_the_page = fit_picture(read_upload(image, Limits()).image, *size).image
    with Image.open(folder / "image") as opened:
        sources, _ = prepare_sources(PictureRequest(opened, None, "editing", None, *size), 1, 1, 1)
    assert sources is not None
    for seen in (by_command, on_the_page, sources.groups[0][0]):
        assert np.array_equal(seen, trained)


@given(
    levels=arrays(np.uint8, st.tuples(SIDES, SIDES), elements=st.integers(0, 3)),
    size=st.tuples(SIDES, SIDES),
)
@settings(max_examples=80, deadline=None)
def test_a_map_of_classes_gets_no_third_colour_anywhere(levels: np.ndarray, size: tuple[int, int]) -> None:
    stored = COLOURS[levels]
    picture = Image.fromarray(stored)
    raw = RawRecord("one", picture, "a cat", "one", maps={"segmentation": picture})
    trained = framed(raw, size).maps["segmentation"]
    seen = [fit_picture(stored, *size, classes=True).image]
    for control, prompts in (("segmentation", None), (None, ["segmentation map to image a cat", "a dog"])):
        wanted = PictureRequest(stored, None, "control", None, *size, control=control, prompts=prompts)
        sources, _ = prepare_sources(wanted, 2, 1, 1)
        assert sources is not None
        seen += [sources.groups[sources.index[0]][0], sources.originals[0]]
    for image in seen:
        assert np.array_equal(image, trained)
    assert {*map(tuple, trained.reshape(-1, 3))} <= {*map(tuple, stored.reshape(-1, 3))}


@pytest.mark.parametrize(
    ("task", "kind", "prompt", "expected"),
    [
        ("control", "segmentation", "a cat", True),
        ("control", None, "Segmentation map to image a cat", True),
        ("control", "depth", "segmentation map to image a cat", False),
        ("control", None, "a cat", False),
        ("editing", None, "segmentation map to image a cat", False),
    ],
)
def test_what_a_map_shows_is_said_by_its_kind_or_by_the_prompt(task, kind, prompt, expected) -> None:
    assert shows_classes(task, kind, prompt) is expected


@given(data=st.data(), shape=st.tuples(SIDES, SIDES), size=st.tuples(SIDES, SIDES))
@settings(max_examples=150, deadline=None)
def test_a_mask_is_one_mask_everywhere(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    shape: tuple[int, int],
    size: tuple[int, int],
) -> None:
    folder = tmp_path_factory.mktemp("one")
    image, mask = data.draw(files(shape)), data.draw(files(shape))
    with Image.open(io.BytesIO(mask)) as opened:
        if not mask_of(opened).any():
            return
    record = record_of(folder, size, image, mask)
    if not record.objects or record.objects[0].mask is None or record.objects[0].mask.all():
        return
    trained = record.image.copy()
    trained[record.objects[0].mask] = 0
    read = read_source(folder / "image").image, read_mask(folder / "mask").image
    by_command = cut_hole(*read, size)
    on_the_page = cut_hole(read_upload(image, Limits()).image, read[1], size)
    with Image.open(folder / "image") as picture, Image.open(folder / "mask") as hole:
        sources, _ = prepare_sources(PictureRequest(picture, hole, "inpainting", None, *size), 1, 1, 1)
    assert sources is not None
    for seen in (by_command, on_the_page, sources.groups[0][0]):
        assert np.array_equal(seen, trained)


def disc(radius: float = 14.0) -> np.ndarray:
    """A disc in the middle of 64 x 64 pixels."""
    rows, columns = np.mgrid[:64, :64]
    hole: np.ndarray = (rows - 31.5) ** 2 + (columns - 31.5) ** 2 < radius**2
    return hole


def painted(picture: Image.Image) -> int:
    return int(mask_of(picture).sum())


def test_a_mask_does_not_grow_by_what_jpeg_adds_around_it() -> None:
    hole = disc()
    held = io.BytesIO()
    Image.fromarray(np.where(hole, 255, 0).astype(np.uint8)).save(held, "JPEG", quality=60)
    with Image.open(held) as opened:
        assert (
            np.asarray(opened.convert("L")) > 0
        ).sum() > 1.2 * hole.sum()  # what counting all but black gave
        assert np.array_equal(mask_of(opened), hole)


@pytest.mark.parametrize(
    ("name", "picture"),
    {
        "black and white": Image.fromarray(disc()),
        "0 and 1": Image.fromarray(disc().astype(np.uint8)),
        "0 and 1 in 16 bits": Image.fromarray(disc().astype(np.uint16)),
        "floats": Image.fromarray(disc().astype(np.float32)),
        "one dark colour": Image.fromarray(disc()[..., None] * np.array([128, 0, 0], np.uint8)),
        "white all over, seen in the disc": Image.fromarray(
            np.dstack([np.full((64, 64, 3), 255, np.uint8), np.where(disc(), 255, 0).astype(np.uint8)])
        ),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_way_to_write_a_mask_means_the_same(name: str, picture: Image.Image) -> None:
    assert np.array_equal(mask_of(picture), disc()), name


def test_no_colour_that_hides_is_seen(tmp_path: Path) -> None:
    hidden = np.zeros((8, 8, 4), np.uint8)
    hidden[..., 0], hidden[2:6, 2:6, 3] = 200, 255
    held = io.BytesIO()
    Image.fromarray(hidden).save(held, "PNG")
    image = record_of(tmp_path, None, held.getvalue()).image
    assert (image[0, 0] == 255).all() and image[3, 3].tolist() == [200, 0, 0]
    assert opaque(Image.fromarray(hidden)).was_transparent

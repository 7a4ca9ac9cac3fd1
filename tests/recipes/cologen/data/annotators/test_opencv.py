"""Control maps have one look wherever they come from: polarity, near and far, colours that are classes."""

import sys
import types

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from recipes.cologen.config.annotators import AnnotatorSettings
from recipes.cologen.config.data import DataSettings, SetSettings
from recipes.cologen.data.annotators.annotate import Annotators, annotate
from recipes.cologen.data.annotators.opencv import canny_map
from recipes.cologen.data.annotators.transformer_models import depth_levels
from recipes.cologen.data.control import control_example, control_map
from recipes.cologen.data.folder import PictureFolder
from recipes.cologen.data.framing import frame_of, framed, resized_pixels
from recipes.cologen.data.raw import RawRecord
from recipes.cologen.data.record import Origin, Record
from recipes.cologen.data.sets import DataSet
from recipes.cologen.errors import BrokenPictureError
from tests.recipes.cologen.data.published import picture, write_lines
from tests.recipes.cologen.data.published_tables import PUBLISHED

CPU = torch.device("cpu")


def square():
    """A light square on dark ground: few pixels are edges, all others are not."""
    shown = np.full((32, 48, 3), 40, dtype=np.uint8)
    shown[8:24, 12:36] = 220
    return shown


def is_white_on_black(drawn):
    """Whether the ground is black and what is drawn on it is light."""
    gray = np.asarray(drawn).mean(-1)
    return gray[0, 0] == 0 and gray[16, 24] == 0 and gray.max() > 128 and (gray < 64).mean() > 0.5


@pytest.mark.parametrize("kind", ["canny", "soft_edge", "lineart"])
def test_lines_are_white_on_black_in_training_and_wherever_a_map_is_asked_for(kind):
    record = Record("r", square(), "a square")
    assert is_white_on_black(control_example(record, kind).source)
    assert np.array_equal(annotate(square(), kind, {}, CPU), control_example(record, kind).source)
    assert np.array_equal(control_map(record, kind), control_example(record, kind).source)


class _PaperDrawing(torch.nn.Module):
    """Stands for controlnet_aux's line art network, which draws dark lines on white paper, 0 to 1."""

    def forward(self, pixels):
        changed = (pixels - pixels.roll(1, -1)).abs().amax(1, keepdim=True) > 0.1
        return 1 - changed.float()


class _EdgeLogits(torch.nn.Module):
    """Stands for HED's network, whose outputs are logits of edges at five depths."""

    def forward(self, pixels):
        changed = (pixels - pixels.roll(1, -1)).abs().amax(1, keepdim=True) > 25
        return [torch.where(changed, 9.0, -9.0)] * 5


def test_networks_and_opencv_draw_lines_in_one_polarity(monkeypatch):
    lineart = types.SimpleNamespace(model=_PaperDrawing(), model_coarse=_PaperDrawing())
    hed = types.SimpleNamespace(netNetwork=_EdgeLogits())
    package = types.SimpleNamespace(
        LineartDetector=types.SimpleNamespace(from_pretrained=lambda path: lineart),
        HEDdetector=types.SimpleNamespace(from_pretrained=lambda path: hed),
    )
    monkeypatch.setitem(sys.modules, "controlnet_aux", package)
    chosen = AnnotatorSettings(kind="controlnet_aux", path="weights")
    pixels = torch.from_numpy(square()).permute(2, 0, 1)[None]
    for kind in ("lineart", "soft_edge"):
        drawn = Annotators.load({kind: chosen}, CPU).annotate(kind, pixels)[0].permute(1, 2, 0)
        assert is_white_on_black(drawn), kind


@given(arrays(np.uint8, st.tuples(st.integers(3, 24), st.integers(3, 24), st.just(3))))
@settings(max_examples=60)
def test_canny_is_opencvs_own_on_the_colours(image):
    wanted = cv2.Canny(image, 100, 200)
    assert np.array_equal(canny_map(image), wanted[..., None].repeat(3, -1))


def test_canny_of_channels_that_differ_is_not_the_union_of_three():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    union = np.max([cv2.Canny(np.ascontiguousarray(noise[..., c]), 100, 200) for c in range(3)], axis=0)
    assert not np.array_equal(canny_map(noise)[..., 0], union)


colours = st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=2, max_size=6, unique=True)


@given(colours, st.tuples(st.integers(2, 40), st.integers(2, 40)), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_a_stored_map_of_colours_that_are_classes_gets_no_other_colour(palette, size, seed):
    chosen = np.random.default_rng(seed).integers(len(palette), size=(24, 40))
    stored = np.array(palette, dtype=np.uint8)[chosen]
    maps = {"segmentation": Image.fromarray(stored)}
    raw = RawRecord("r", picture(1), "a", Origin("d", None, "any", 40, 24), maps=maps)
    shown = framed(raw, size).maps["segmentation"]
    assert shown.shape == (*size, 3)
    assert {tuple(map(int, one)) for one in shown.reshape(-1, 3)} <= set(palette)


@pytest.mark.parametrize("layout", ["captioned_ade20k", "captioned_cocostuff"])
def test_the_published_maps_of_classes_keep_their_colours(layout, tmp_path):
    part = DataSet("x", PUBLISHED[layout](tmp_path), DataSettings(size=(10, 14)))
    stored = DataSet("x", PUBLISHED[layout](tmp_path), DataSettings()).record(0).maps["segmentation"]
    shown = part.record(0).maps["segmentation"]
    assert {tuple(one) for one in shown.reshape(-1, 3)} <= {tuple(one) for one in stored.reshape(-1, 3)}


def test_other_pictures_are_still_resized_smoothly():
    half = Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 8)[None].repeat(16, 0))
    frame = frame_of(half.size, (5, 5))
    assert len(np.unique(resized_pixels(half, frame))) > 2
    assert set(np.unique(resized_pixels(half, frame, classes=True))) == {0, 255}


def depth_of(values, folder, size=None):
    picture(1, *values.shape[::-1]).save(folder / "a.png")
    Image.fromarray(values).save(folder / "depth.tiff")
    write_lines(folder / "metadata.jsonl", {"file_name": "a.png", "text": "a", "depth": "depth.tiff"})
    return PictureFolder(folder, size).record(0)


odd = st.sampled_from([np.nan, np.inf, -np.inf])
depths = arrays(np.float32, (6, 8), elements=st.floats(-1000, 1000, width=32))


@given(depths, st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), odd), max_size=20))
@settings(max_examples=60, deadline=None)
def test_depth_is_stretched_over_its_finite_values(tmp_path_factory, values, spoilt):
    spoilt_values = values.copy()
    for row, column, value in spoilt:
        spoilt_values[row, column] = value
    finite = np.isfinite(spoilt_values)
    record = depth_of(spoilt_values, tmp_path_factory.mktemp("depth"))
    assert record.depth_lost == (~finite).sum()
    kept = values[finite].astype(np.float64)
    wanted = (kept - kept.min()) / ((kept.max() - kept.min()) or 1.0)
    assert np.allclose(record.depth[finite], wanted, atol=1e-6)
    assert (record.depth[~finite] == 0).all() and np.isfinite(record.depth).all()


def test_depth_of_one_value_is_far_and_depth_without_any_is_broken(tmp_path):
    assert (depth_of(np.full((6, 8), 7, np.float32), tmp_path).depth == 0).all()
    for value in (np.nan, np.inf):
        with pytest.raises(BrokenPictureError, match="none of the 48 pixels of the depth map is a finite"):
            depth_of(np.full((6, 8), value, np.float32), tmp_path)


def test_of_depth_sets_a_map_without_a_value_is_skipped_and_named(tmp_path):
    picture(1, 8, 6).save(tmp_path / "a.png")
    Image.fromarray(np.full((6, 8), np.nan, np.float32)).save(tmp_path / "depth.tiff")
    row = {"image": "a.png", "text": "a", "depth": "depth.tiff"}
    write_lines(tmp_path / "rows.jsonl", row)
    part = DataSet("x", SetSettings(layout="own", path=f"json:{tmp_path}/rows.jsonl"), DataSettings())
    with pytest.raises(BrokenPictureError, match=r"x/rows\.jsonl/0: none of the 48 pixels"):
        part.record(0)


def test_a_picture_without_any_finite_value_is_broken_as_a_depth_map_is(tmp_path):
    Image.fromarray(np.full((6, 8), np.nan, np.float32)).save(tmp_path / "a.tiff")
    write_lines(tmp_path / "rows.jsonl", {"image": "a.tiff", "text": "a"})
    part = DataSet("x", SetSettings(layout="own", path=f"json:{tmp_path}/rows.jsonl"), DataSettings())
    with pytest.raises(BrokenPictureError, match=r"none of its 48 pixels is a finite number"):
        part.record(0)


@given(arrays(np.float32, (2, 4, 5), elements=st.floats(-1e6, 1e6, width=32)), st.booleans(), odd)
@settings(max_examples=60)
def test_a_networks_depth_is_stretched_over_its_finite_values(values, spoil, value):
    depth = torch.from_numpy(values.copy())
    if spoil:
        depth[0, 0, 0] = value
    levels = depth_levels(depth)
    assert levels.shape == (2, 3, 4, 5)
    for one, drawn in zip(depth, levels, strict=True):
        finite = one.isfinite()
        kept = one[finite].double()
        wanted = 255 * (kept - kept.min()) / (kept.max() - kept.min()).clamp_min(1e-12)
        assert ((drawn[0][finite].double() - wanted).abs() <= 1).all()
        assert (drawn[:, ~finite] == 0).all()


def test_a_networks_depth_without_a_value_is_black():
    assert (depth_levels(torch.full((1, 4, 5), torch.nan)) == 0).all()

"""Stamps composed into scenes: masks, boxes, depth, classes and pairs are exactly what the picture shows."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.cologen.config.data import DataSettings, SetSettings
from recipes.cologen.data.composition import Composition, CutOut
from recipes.cologen.data.framing import box_around
from recipes.cologen.data.sets import DataSet
from recipes.cologen.data.sources.stamps import described
from recipes.cologen.data.views import VIEWS
from recipes.cologen.errors import BrokenPictureError, DataSetError
from tests.recipes.cologen.stamp_folder import SHAPES, write_stamps

HEIGHT, WIDTH = 48, 80
PACKAGE = Path("/usr/share/tuxpaint/stamps")
indices, seeds = st.integers(0, 300), st.integers(0, 2**31)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_stamps(tmp_path_factory.mktemp("stamps"))


def opened(folder, data=None, **options):
    options = {"scenes": 301, "min_side": 8, "height": HEIGHT, "width": WIDTH, **options}
    chosen = SetSettings(layout="stamps", path=f"folder:{folder}", options=options)
    return DataSet("stamps", chosen, data or DataSettings())


@st.composite
def compositions(draw):
    """A few cut-outs of random pixels on random ground, some of them behind others."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(4, 12)), draw(st.integers(4, 12))
    items = []
    for number in range(draw(st.integers(0, 4))):
        h, w = (int(rng.integers(1, side + 1)) for side in (height, width))
        place = (int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)))
        pixels = rng.integers(0, 256, (h, w, 4), dtype=np.uint8)
        pixels[..., 3] = rng.choice([0, 60, 125, 127, 128, 130, 255], (h, w))
        items.append(CutOut(f"thing {number}", f"a thing {number}", number + 1, pixels, *place))
    return Composition(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), tuple(items))


@given(compositions())
@settings(max_examples=60, deadline=None)
def test_a_composition_is_what_each_pixel_shows_from_front_to_back(made):
    picture, masks, depth, classes = made.picture(), made.masks, made.depth(), made.classes()
    for y in range(made.size[0]):
        for x in range(made.size[1]):
            colour, seen = made.background[y, x].astype(float), None
            for position, item in enumerate(made.cut_outs):
                h, w = item.pixels.shape[:2]
                if item.top <= y < item.top + h and item.left <= x < item.left + w:
                    pixel = item.pixels[y - item.top, x - item.left].astype(float)
                    colour = pixel[3] / 255 * pixel[:3] + (1 - pixel[3] / 255) * colour
                    seen = position if pixel[3] >= 128 else seen
            assert np.abs(picture[y, x] - colour).max() <= 0.51
            assert [bool(mask[y, x]) for mask in masks] == [k == seen for k in range(len(masks))]
            assert classes[y, x] == (0 if seen is None else made.cut_outs[seen].number)
            assert depth[y, x] == (0 if seen is None else 255 * (seen + 1) // len(made.cut_outs))


@given(index=indices, seed=seeds)
@settings(max_examples=30, deadline=None)
def test_a_record_tells_exactly_what_is_seen(folder, index, seed):
    record = opened(folder, seed=seed).record(index)
    assert record.image.shape == (HEIGHT, WIDTH, 3) and 1 <= len(record.objects) <= 3
    total = np.zeros((HEIGHT, WIDTH), int)
    kinds = {name.split("/")[1]: name.split("/")[0] for name in SHAPES}
    colours = {name.split("/")[1]: colour for name, (_, colour) in SHAPES.items()}
    assert record.depth is not None and record.segmentation is not None
    depths = []
    for item in record.objects:
        total += item.mask
        assert item.box == box_around(item.mask)
        assert (record.segmentation[item.mask] == {"shapes": 1, "signs": 2}[kinds[item.label]]).all()
        assert len(set(record.depth[item.mask])) == 1
        depths.append(float(record.depth[item.mask][0]))
        # Whole inside; its edges are soft, and so are those of what lies in front.
        assert (record.image[item.mask] == colours[item.label]).all(-1).any()
        assert f"{item.label} at the" in record.caption
    assert total.max() == 1 and depths == sorted(depths) and len(set(depths)) == len(depths)
    assert (record.segmentation[total == 0] == 0).all() and (record.depth[total == 0] == 0).all()


@given(index=indices, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_an_edit_changes_what_it_names_and_nothing_else(folder, index, seed):
    record = opened(folder, seed=seed).record(index)
    (pair,) = (pair for pair in record.pairs if pair.task == "editing")
    changed = (pair.image != record.image).any(-1)
    named = [item for item in record.objects if f"the {item.label}" in pair.prompt]
    assert changed.any()
    if pair.kind == "add":
        assert not named and pair.prompt.startswith(("add a ", "add the "))
        return
    (item,) = named
    words = {"remove": "remove the", "recolour": "make the", "swap": "replace the", "move": "move the"}
    assert pair.prompt.startswith(words[pair.kind])
    if pair.kind in ("remove", "recolour"):
        beyond = changed.copy()
        x0, y0, x1, y1 = footprint(item.box)
        beyond[y0:y1, x0:x1] = False
        assert not beyond.any()
    front = record.objects[record.objects.index(item) + 1 :]
    if pair.kind in ("remove", "recolour") and front:  # what lies in front stays, but for its soft edges
        own = [changed[other.mask].mean() for other in front]
        assert max(own) < 0.5


def footprint(box):
    """A box with the width of a stamp around it: what is seen of a stamp may be less than the stamp."""
    side = round(0.6 * HEIGHT) + 1
    return max(0, box[0] - side), max(0, box[1] - side), box[2] + side, box[3] + side


@given(index=indices, seed=seeds)
@settings(max_examples=20, deadline=None)
def test_a_scene_follows_from_seed_and_number(folder, index, seed):
    first, second = opened(folder, seed=seed).record(index), opened(folder, seed=seed).record(index)
    assert np.array_equal(first.image, second.image) and first.caption == second.caption
    for one, other in zip(first.pairs, second.pairs, strict=True):
        assert one.prompt == other.prompt and np.array_equal(one.image, other.image)
    assert not np.array_equal(first.image, opened(folder, seed=seed + 1).record(index).image)


@pytest.mark.parametrize("size", [None, (32, 48)])
@pytest.mark.parametrize("task", VIEWS)
def test_every_stage_is_served_at_any_size(folder, task, size):
    part = opened(folder, DataSettings(size=size))
    kinds = Counter()
    for index in range(25):
        example = VIEWS[task](part.record(index), index)
        kinds[example.kind] += 1
        assert example.source.shape == example.target.shape == (*(size or (HEIGHT, WIDTH)), 3)
        assert example.prompt and example.origin.licence == "gpl-2.0"
        if task != "inpainting":
            assert not np.array_equal(example.source, example.target)
    expected = {
        "control": {"canny", "depth", "soft_edge", "lineart", "segmentation"},
        "editing": {"remove", "recolour", "swap", "add", "move"},
        "customization": {"alone", "with another"},
        "grounding": {"box", "mask", "instance"},
        "inpainting": {"random", "object", "bezier"},
    }
    assert set(kinds) == expected[task]


def test_customization_shows_the_subject_on_other_ground(folder, monkeypatch):
    few = {"navy": (25, 30, 75), "tan": (205, 180, 140)}  # so that the same one would soon be drawn again
    monkeypatch.setattr("recipes.cologen.data.stamp_scenes._GROUND", few)
    part = opened(folder)
    for index in range(20):
        record = part.record(index)
        (pair,) = (pair for pair in record.pairs if pair.task == "customization")
        subject = pair.prompt.removeprefix("the same ").split(" at the ")[0]
        assert subject in {item.label for item in record.objects}
        colour = next(colour for name, (_, colour) in SHAPES.items() if name.endswith(subject))
        assert (pair.image == colour).all(-1).any()  # the very same thing
        assert record.caption.split(" on ")[1] != pair.prompt.split(" on ")[1]


def test_two_subjects_come_from_two_sources_and_meet_in_the_target(folder):
    part = opened(folder, DataSettings(max_sources=2), subjects=2, most=2)
    colours = {name.split("/")[1]: colour for name, (_, colour) in SHAPES.items()}
    for index in range(25):
        example = VIEWS["customization"](part.record(index), 0)
        named = re.findall("the same ([a-z]+) at the", example.prompt)
        assert example.kind == "two subjects" and len(set(named)) == 2
        (second,) = example.further
        for subject, source in zip(named, (example.source, second), strict=True):
            assert (source == colours[subject]).all(-1).any()
            assert (example.target == colours[subject]).all(-1).any()
        assert not (second == colours[named[0]]).all(-1).any()
    with pytest.raises(DataSetError, match="max_sources=2"):
        opened(folder, subjects=2).record(0)


def test_twins_share_their_name_and_are_never_the_subject(folder):
    part = opened(folder, least=3, most=3)
    twins = 0
    for index in range(60):
        record = part.record(index)
        labels = Counter(item.label for item in record.objects)
        twins += max(labels.values()) > 1
        for pair in record.pairs:
            named = [
                label for label in labels if f"the {label}" in pair.prompt or f"same {label}" in pair.prompt
            ]
            assert all(labels[label] == 1 for label in named)
    assert twins > 3


def test_held_out_stamps_are_not_those_that_are_trained_on(folder):
    names = {part: {stamp.file for stamp in opened(folder, held_out=part).rows.stamps} for part in (-1, 0)}
    assert names[0] <= names[-1] == {f"{name}.png" for name in SHAPES}
    with pytest.raises(DataSetError, match="stamps that can be used; at least two"):
        opened(folder, held_out=1)


@pytest.mark.parametrize(
    ("text", "stem", "told"),
    [
        ("A bear.", "x", ("bear", "a bear")),
        ("A Seville orange, also called a bitter orange.", "x", ("Seville orange", "a Seville orange")),
        ("The letter j.", "x", ("letter j", "the letter j")),
        ("Excited!", "excited", ("excited", "an excited")),
        ("Holly leaves are shiny and have prickles!", "holly_leaves2", ("holly leaves", "a holly leaves")),
        ("“School Crossing”.", "xing_school", ("xing school", "a xing school")),
        ("Tankers carry bulk liquids.", "trainTanker", ("train tanker", "a train tanker")),
    ],
)
def test_a_stamp_is_called_by_its_description_or_else_its_file(text, stem, told):
    assert described(text, stem) == told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"subjects": 3}, "options.subjects is 3; expected 1 or 2"),
        ({"most": 0}, "options.most is 0; expected at least 1"),
        ({"least": 3, "most": 2}, "options.most is 2; expected at least 3"),
        ({"min_side": 100}, "0 stamps that can be used.*100 pixels long"),
        ({"size": 5}, "has no size; it has scenes"),
    ],
)
def test_options_that_cannot_be_are_refused(folder, options, told):
    with pytest.raises(DataSetError, match=told):
        opened(folder, **options)


def test_what_is_no_folder_of_stamps_is_refused(tmp_path):
    with pytest.raises(DataSetError, match=r"there is no folder .*apt-get install tuxpaint-stamps-default"):
        opened(tmp_path / "nowhere")
    with pytest.raises(DataSetError, match="stamps are read from a folder"):
        DataSet("s", SetSettings(layout="stamps", path="tar:x"), DataSettings())
    write_stamps(tmp_path)
    (tmp_path / "shapes/circle.png").write_bytes(b"no picture")
    with pytest.raises(DataSetError, match=r"circle\.png is no picture"):
        opened(tmp_path)


def test_a_torn_stamp_breaks_the_scenes_it_is_in_and_no_others(tmp_path):
    write_stamps(tmp_path)
    file = tmp_path / "shapes/circle.png"
    file.write_bytes(file.read_bytes()[:60])
    part, broken = opened(tmp_path, most=1), 0
    for index in range(30):
        try:
            part.record(index)
        except BrokenPictureError as error:
            broken += 1
            assert "circle.png cannot be decoded" in str(error)
    assert 0 < broken < 30


def test_photographs_may_be_the_background(folder):
    part = opened(folder, photographs=1)
    assert any("on a photograph of" in part.record(index).caption for index in range(12))


@pytest.mark.skipif(not PACKAGE.is_dir(), reason="Debian's tuxpaint-stamps-default is not installed")
def test_tux_paints_own_stamps_serve_every_stage():
    part = DataSet(
        "tux", SetSettings(layout="stamps", path=f"folder:{PACKAGE}"), DataSettings(size=(96, 128))
    )
    assert len(part.rows.stamps) > 400 and len({stamp.label for stamp in part.rows.stamps}) > 300
    for index in range(10):
        record = part.record(index)
        assert all(item.box == box_around(item.mask) for item in record.objects)
        for task, view in VIEWS.items():
            assert view(record, index).source.shape == (96, 128, 3), task

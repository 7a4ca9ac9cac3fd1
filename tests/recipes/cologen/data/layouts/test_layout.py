"""Every published data set: a small file with exactly its columns becomes the records that it should."""

import numpy as np
import pytest
from PIL import Image

from recipes.cologen.config.data import DataSettings
from recipes.cologen.data.layouts import LAYOUTS, Reading
from recipes.cologen.data.sets import DataSet
from recipes.cologen.data.views import VIEWS
from recipes.cologen.errors import BrokenPictureError
from tests.recipes.cologen.data.published import HEIGHT, WIDTH, pixels, png, rectangle
from tests.recipes.cologen.data.published_tables import PUBLISHED

ALLOWED = DataSettings(empty_captions="allow")
RECTANGLE = rectangle(4, 6, 14, 18)


def opened(layout, folder, data=ALLOWED, **changes):
    settings = PUBLISHED[layout](folder).model_copy(update=changes)
    return DataSet("mine", settings, data)


def test_there_is_a_file_for_every_published_layout():
    assert set(PUBLISHED) == set(LAYOUTS) - {"own", "paired", "stamps"}


@pytest.mark.parametrize("layout", PUBLISHED)
def test_every_stage_that_a_layout_serves_gets_its_example(layout, tmp_path):
    part = opened(layout, tmp_path, DataSettings(empty_captions="allow", size=(16, 24)))
    for task in part.tasks:
        for seed in range(5):
            example = VIEWS[task](part.record(0), seed)
            assert example.source.shape == example.target.shape == (16, 24, 3)
            assert example.prompt
            assert example.origin.licence == LAYOUTS[layout].licence
            assert example.origin.dataset == LAYOUTS[layout].home


@pytest.mark.parametrize("layout", sorted(set(PUBLISHED) - {"subjects200k"}))
def test_a_picture_keeps_its_width_and_height(layout, tmp_path):
    record = opened(layout, tmp_path).record(0)
    assert record.image.shape == (HEIGHT, WIDTH, 3)
    assert (record.origin.width, record.origin.height) == (WIDTH, HEIGHT)


def test_journeydb_takes_its_objects_from_additions(tmp_path):
    part = opened("journeydb", tmp_path)
    assert len(part) == 1 and part.left_out == {"no objects in additions": 1}
    record = part.record(0)
    assert record.caption == "A cat."
    (cat,) = record.objects
    assert (cat.label, cat.box) == ("cat", (4, 6, 14, 18)) and np.array_equal(cat.mask, RECTANGLE)


def test_ade20k_has_whole_objects_by_their_outlines(tmp_path):
    record = opened("ade20k", tmp_path).record(0)
    assert record.caption == "a sofa in a room"
    (sofa,) = record.objects
    assert sofa.label == "sofa" and np.array_equal(sofa.mask, RECTANGLE)


def test_coco_stuff_joins_things_stuff_and_captions(tmp_path):
    part = opened("coco_stuff", tmp_path)
    assert len(part) == 1 and part.left_out == {"no objects": 1}
    record = part.record(0)
    assert record.caption == "A cat under the sky."
    cat, sky = record.objects  # the crowd is none
    assert (cat.label, cat.box) == ("cat", (4, 6, 14, 18)) and np.array_equal(cat.mask, RECTANGLE)
    assert sky.label == "sky-other" and sky.mask.sum() == 5 * WIDTH


def test_lvis_finds_its_pictures_by_their_address(tmp_path):
    (racket,) = opened("lvis", tmp_path).record(0).objects
    assert racket.label == "tennis racket"
    assert racket.box == (4, 6, 14, 18) and np.array_equal(racket.mask, RECTANGLE)


def test_refcoco_names_one_object_by_each_of_its_phrases(tmp_path):
    part = opened("refcoco", tmp_path)
    assert len(part) == 1 and part.left_out == {"split testA": 1}
    objects = part.record(0).objects
    assert [item.label for item in objects] == ["The lady in blue", "woman at left"]
    assert {(item.category, item.box) for item in objects} == {("person", (4, 6, 14, 18))}
    assert all(np.array_equal(item.mask, RECTANGLE) for item in objects)


def test_multigen_depth_is_read_and_other_maps_are_drawn(tmp_path):
    record = opened("multigen_depth", tmp_path).record(0)
    assert record.depth.shape == (HEIGHT, WIDTH) and (np.diff(record.depth) > 0).all()
    assert {VIEWS["control"](record, seed).kind for seed in range(40)} == {
        "canny",
        "depth",
        "soft_edge",
        "lineart",
    }


@pytest.mark.parametrize("layout", ["captioned_ade20k", "captioned_cocostuff"])
def test_captioned_sets_give_their_stored_map_and_their_classes_as_objects(layout, tmp_path):
    record = opened(layout, tmp_path).record(0)
    assert np.array_equal(record.maps["segmentation"], pixels(10))
    drawn = [VIEWS["control"](record, seed) for seed in range(40)]
    assert any(np.array_equal(one.source, pixels(10)) for one in drawn if one.kind == "segmentation")
    (region,) = record.objects
    assert region.label == "class 12" and np.array_equal(region.mask, RECTANGLE)


def test_subjects_are_cut_apart_and_lead_both_ways(tmp_path):
    part = opened("subjects200k", tmp_path)
    assert len(part) == 2
    assert part.left_out == {"score too low": 1, "description not valid": 1, "not scored": 1}
    left, right = pixels(20, 16, 16), pixels(21, 16, 16)
    for record, source, target, prompt in (
        (part.record(0), left, right, "A mug in the snow."),
        (part.record(1), right, left, "A mug on a desk."),
    ):
        example = VIEWS["customization"](record, 0)
        assert np.array_equal(example.source, source) and np.array_equal(example.target, target)
        assert example.prompt == prompt and example.origin.scores["imageQuality"] == 5
    assert part.record(0).id != part.record(1).id


def test_the_right_subject_begins_where_the_published_size_says_or_where_one_asks(tmp_path):
    part = opened("subjects200k", tmp_path)
    assert part.record(0).pairs[0].image.shape == (16, 16, 3)
    # OminiControl's loader takes the border between the two once: 8 + 16 = 24, in place of 40.
    asked = opened("subjects200k", tmp_path, options={"right": 32}).record(1).image
    assert (asked[:, :8] == 255).all() and np.array_equal(asked[:, 8:], pixels(21, 16, 16)[:, :8])
    for right in (23, 49):
        with pytest.raises(BrokenPictureError, match=rf"cannot begin at {right} \(option `right`\)"):
            opened("subjects200k", tmp_path, options={"right": right}).record(0)


def test_a_subject_of_the_published_size_is_cut_at_536():
    sheet = Image.new("RGB", (1056, 528), "white")
    for left, shown in ((8, pixels(1, 512, 512)), (536, pixels(2, 512, 512))):
        sheet.paste(Image.fromarray(shown), (left, 8))
    layout = LAYOUTS["subjects200k"]
    row = {"image": png(sheet), "description": {}, "quality_assessment": {}}
    reading = Reading("x", row, 0, layout.tasks, layout.options, "d", None, "any", None)
    raw = layout.record(reading)
    assert np.array_equal(np.asarray(raw.picture), pixels(1, 512, 512))
    assert np.array_equal(np.asarray(raw.pairs[0].picture), pixels(2, 512, 512))


def test_uno_leads_both_ways_and_leaves_out_what_scores_low_or_impossibly(tmp_path):
    part = opened("uno_1m", tmp_path)
    assert len(part) == 2 and part.left_out == {"score too low": 1, "impossible score": 1}
    forward, backward = (VIEWS["customization"](part.record(index), 0) for index in (0, 1))
    assert (forward.prompt, backward.prompt) == ("A hat on a dog.", "A hat on a table.")
    assert np.array_equal(forward.source, pixels(11)) and np.array_equal(backward.source, pixels(12, 24, 40))


@pytest.mark.parametrize("layout", ["omniedit", "magicbrush", "ultraedit", "instructpix2pix", "imgedit"])
def test_edits_lead_from_before_to_after(layout, tmp_path):
    example = VIEWS["editing"](opened(layout, tmp_path).record(0), 0)
    assert np.array_equal(example.source, pixels(13)) and np.array_equal(example.target, pixels(14))


def prompts(part):
    return {VIEWS["editing"](part.record(0), seed).prompt for seed in range(30)}


def test_both_forms_of_a_prompt_are_asked(tmp_path):
    assert prompts(opened("omniedit", tmp_path)) == {"add a hat", "Place a hat on his head."}


@pytest.mark.parametrize("layout", ["ultraedit", "instructpix2pix"])
def test_a_caption_of_the_result_is_the_second_form_where_it_is_wanted(layout, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir(), second.mkdir()
    assert prompts(opened(layout, first)) == {"add a hat"}
    assert prompts(opened(layout, second, options={"captions": 1})) == {"add a hat", "a dog in a hat"}


@pytest.mark.parametrize(
    ("layout", "options", "reason"),
    [
        ("omniedit", {"min_score": 9}, "score too low"),
        ("magicbrush", {"first_turn_only": 1}, "later turn"),
        ("ultraedit", {"min_ssim": 0.4}, "ssim too low"),
    ],
)
def test_filters_leave_rows_out_and_count_them(layout, options, reason, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir(), second.mkdir()
    assert len(opened(layout, first)) == 2
    part = opened(layout, second, options=options)
    assert len(part) == 1 and part.left_out == {reason: 1}

"""The five views: pure, exact, in the closed vocabulary, and honest about what a record lacks."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.cologen.config.annotators import MAP_KINDS
from recipes.cologen.data import oracle
from recipes.cologen.data.class_colours import CLASS_COLOURS
from recipes.cologen.data.control import FROM_RECORD, available_kinds
from recipes.cologen.data.editing import EDITS
from recipes.cologen.data.grounding import draw_box
from recipes.cologen.data.inpainting import MASK_KINDS
from recipes.cologen.data.masks import MAX_OBJECT_IOU, bezier_mask, intersection_over_union, random_mask
from recipes.cologen.data.record import MissingMetadataError, Record
from recipes.cologen.data.scene import draw
from recipes.cologen.data.views import VIEWS
from recipes.cologen.data.vocabulary import MAX_TEXT_TOKENS, PRETRAINING_VERBS, VOCABULARY
from recipes.cologen.data.world import World

tasks = st.sampled_from(sorted(VIEWS))
indices = st.integers(0, 5_000)
seeds = st.integers(0, 2**32)


@given(tasks, indices, seeds)
@settings(max_examples=300)
def test_the_oracle_gives_every_target_full_marks(task: str, index: int, seed: int) -> None:
    example = VIEWS[task](World(11).record(index), seed)
    assert oracle.score(example, example.target)


@given(tasks, indices, seeds)
def test_a_view_is_pure(task: str, index: int, seed: int) -> None:
    record = World(11).record(index)
    before = record.image.copy()
    first, second = VIEWS[task](record, seed), VIEWS[task](record, seed)
    assert first.prompt == second.prompt
    assert np.array_equal(first.source, second.source)
    assert np.array_equal(first.target, second.target)
    assert np.array_equal(record.image, before)


@given(tasks, indices, seeds)
def test_prompts_are_short_and_never_use_the_words_of_pretraining(task: str, index: int, seed: int) -> None:
    words = VIEWS[task](World(11).record(index), seed).prompt.split()
    assert set(words) <= set(VOCABULARY) - set(PRETRAINING_VERBS)
    assert len(words) < MAX_TEXT_TOKENS


@given(st.sampled_from(["grounding", "customization", "editing"]), indices, seeds)
def test_returning_the_source_never_scores(task: str, index: int, seed: int) -> None:
    example = VIEWS[task](World(11).record(index), seed)
    assert not oracle.score(example, example.source)


@given(indices, seeds)
def test_drawing_on_pixels_equals_drawing_the_marked_scene(index: int, seed: int) -> None:
    example = VIEWS["grounding"](World(11).record(index), seed)
    assert np.array_equal(example.target, draw(example.meta["scene"]))


def _kinds(task: str, count: int) -> Counter[str]:
    return Counter(VIEWS[task](World(2).record(index), 0).kind for index in range(count))


def test_holes_come_in_the_papers_proportions() -> None:
    kinds = _kinds("inpainting", 2000)
    for kind, share in MASK_KINDS.items():
        assert abs(kinds[kind] / 2000 - share) < 0.04


def test_every_kind_of_map_and_edit_occurs() -> None:
    assert set(_kinds("control", 200)) == set(MAP_KINDS)
    assert set(_kinds("editing", 200)) == set(EDITS)
    assert set(_kinds("grounding", 200)) == {"box", "mask", "instance"}
    assert set(_kinds("customization", 50)) == {"alone", "with another"}


sides = st.integers(8, 80)


@given(sides, sides, seeds)
def test_random_masks_leave_objects_and_something_to_see(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    item = np.zeros((height, width), dtype=bool)
    item[: height // 2, : width // 2] = True
    mask = random_mask(rng, height, width, [item])
    assert mask.shape == (height, width)
    assert mask.any()
    assert not mask.all()
    assert intersection_over_union(mask, item) <= MAX_OBJECT_IOU


@given(sides, sides, seeds, st.data())
def test_bezier_masks_stay_in_the_picture_and_cover_most_of_the_box(
    height: int, width: int, seed: int, data: st.DataObject
) -> None:
    x0, y0 = data.draw(st.integers(0, width - 4)), data.draw(st.integers(0, height - 4))
    x1, y1 = data.draw(st.integers(x0 + 4, width)), data.draw(st.integers(y0 + 4, height))
    mask = bezier_mask(np.random.default_rng(seed), height, width, (x0, y0, x1, y1))
    assert mask.shape == (height, width)
    assert mask[y0:y1, x0:x1].mean() > 0.5


def test_a_box_is_clipped_at_the_border_and_leaves_the_inside_alone() -> None:
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    boxed = draw_box(image, (0, 5, 10, 20), (9, 9, 9))
    changed = (boxed != image).any(-1)
    assert not changed[5:20, 0:10].any()
    assert changed[4, 0:11].all()
    assert changed[4:20, 10].all()
    assert not changed[:, 12:].any()


def test_control_offers_the_maps_a_record_allows() -> None:
    record = replace(World(0).record(0), depth=None, segmentation=None)
    assert available_kinds(record) == ["canny", "soft_edge", "lineart"]
    with pytest.raises(MissingMetadataError, match="no depth map"):
        FROM_RECORD["depth"](record)
    with pytest.raises(MissingMetadataError, match="no segmentation"):
        FROM_RECORD["segmentation"](record)


def test_classes_have_colours_of_their_own() -> None:
    assert CLASS_COLOURS.shape == (256, 3) and CLASS_COLOURS.dtype == np.uint8
    assert len({tuple(row) for row in CLASS_COLOURS.tolist()}) == len(CLASS_COLOURS)
    assert not CLASS_COLOURS[0].any() and CLASS_COLOURS[1:].any(axis=-1).all()
    # Every picture of the world has few classes: their colours must stay what trained runs have seen.
    assert CLASS_COLOURS[:7].tolist() == [
        [0, 0, 0],
        [180, 60, 120],
        [110, 190, 40],
        [20, 110, 200],
        [230, 160, 200],
        [90, 20, 10],
        [10, 220, 180],
    ]


def test_no_class_is_drawn_like_another() -> None:
    classes = np.arange(256).reshape(16, 16)
    drawn = FROM_RECORD["segmentation"](replace(World(0).record(0), segmentation=classes))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 256
    assert (drawn.any(axis=-1) == (classes > 0)).all()


@pytest.mark.parametrize("number", [-1, 256, 65535])
def test_a_class_number_without_a_colour_is_refused(number: int) -> None:
    classes = np.zeros((16, 16), np.int64)
    classes[3, 4] = number
    record = replace(World(0).record(0), id="street.png#7", segmentation=classes)
    with pytest.raises(MissingMetadataError, match=rf"street\.png#7.*{number}.*expected 0.*to 255"):
        FROM_RECORD["segmentation"](record)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("inpainting", "add `objects`"),
        ("grounding", "distinct labels"),
        ("customization", '"task": "customization"'),
        ("editing", '"task": "editing"'),
    ],
)
def test_a_view_that_lacks_metadata_says_what_to_add(task: str, says: str) -> None:
    bare = Record(id="holiday", image=np.zeros((24, 16, 3), dtype=np.uint8), caption="a beach")
    with pytest.raises(MissingMetadataError, match=says) as failure:
        VIEWS[task](bare, 0)
    assert "holiday" in str(failure.value)


def test_a_box_alone_does_not_make_an_object_shaped_hole() -> None:
    record = World(0).record(0)
    boxed = replace(record, objects=tuple(replace(item, mask=None) for item in record.objects))
    outcomes = set()
    for seed in range(40):
        try:
            outcomes.add(VIEWS["inpainting"](boxed, seed).kind)
        except MissingMetadataError as failure:
            assert "mask" in str(failure)
            outcomes.add("refused")
    assert outcomes == {"random", "bezier", "refused"}


def test_labels_that_name_every_mark_colour_are_refused() -> None:
    record = World(0).record(0)
    rainbow = replace(record.objects[0], label="red green blue yellow kite")
    with pytest.raises(MissingMetadataError, match="every colour"):
        VIEWS["grounding"](replace(record, objects=(rainbow,)), 0)

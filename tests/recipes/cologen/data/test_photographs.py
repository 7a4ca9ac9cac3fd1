"""The five views on photographs: those that scikit-image carries in its package, made small, not square."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from recipes.cologen.data.masks import MAX_OBJECT_IOU, intersection_over_union
from recipes.cologen.data.record import Example, MissingMetadataError, Origin, Pair, Record, RecordObject
from recipes.cologen.data.scene import COLOURS
from recipes.cologen.data.views import VIEWS

# Name, what it shows, a box around that, as fractions of width and height.
Photograph = tuple[Callable[[], NDArray[np.uint8]], str, tuple[float, float, float, float]]
PHOTOGRAPHS: dict[str, Photograph] = {
    "astronaut": (skimage.data.astronaut, "astronaut", (0.25, 0.0, 0.7, 0.6)),
    "chelsea": (skimage.data.chelsea, "cat", (0.1, 0.1, 0.8, 0.95)),
    "coffee": (skimage.data.coffee, "cup", (0.3, 0.2, 0.8, 0.85)),
    "rocket": (skimage.data.rocket, "rocket", (0.45, 0.3, 0.6, 0.8)),
}
SIZES = ((48, 64), (64, 40), (33, 57))
"""Height and width; the last is odd on purpose."""

names = st.sampled_from(sorted(PHOTOGRAPHS))
sizes = st.sampled_from(SIZES)
seeds = st.integers(0, 2**31)


def photograph(name: str, size: tuple[int, int]) -> Record:
    """A described photograph: an object with an elliptic mask, made-up depth and classes, two pairs."""
    load, label, fractions = PHOTOGRAPHS[name]
    height, width = size
    pixels = np.asarray(Image.fromarray(load()).resize((width, height), Image.Resampling.LANCZOS))
    x0, y0, x1, y1 = (round(part * side) for part, side in zip(fractions, (width, height) * 2, strict=True))
    rows, columns = np.mgrid[:height, :width]
    middle, radius = ((y0 + y1 - 1) / 2, (x0 + x1 - 1) / 2), ((y1 - y0) / 2, (x1 - x0) / 2)
    mask = ((rows - middle[0]) / radius[0]) ** 2 + ((columns - middle[1]) / radius[1]) ** 2 <= 1
    return Record(
        id=f"{name}-{height}x{width}",
        image=pixels,
        caption=f"a photograph of a {label}",
        objects=(RecordObject(label, label, mask, (x0, y0, x1, y1)),),
        depth=(rows / height).astype(np.float32),
        segmentation=mask.astype(np.int64),
        pairs=tuple(
            Pair(task, pixels[:, ::-1].copy(), "turn it round") for task in ("customization", "editing")
        ),
    )


def same(first: Example, second: Example) -> bool:
    pictures = np.array_equal(first.source, second.source) and np.array_equal(first.target, second.target)
    return pictures and (first.kind, first.prompt) == (second.kind, second.prompt)


@pytest.mark.parametrize("task", VIEWS)
@given(name=names, size=sizes, seed=seeds)
@settings(max_examples=25)
def test_a_view_keeps_size_and_type_and_leaves_the_record_alone(
    task: str, name: str, size: tuple[int, int], seed: int
) -> None:
    record = photograph(name, size)
    before = record.image.copy()
    example = VIEWS[task](record, seed)
    assert example.task == task and example.prompt and example.kind
    for picture in (example.source, example.target):
        assert picture.shape == (*size, 3) and picture.dtype == np.uint8
    assert np.array_equal(record.image, before)
    assert example.meta.get("scene") is None  # nothing for the oracle to read: the world's alone


@pytest.mark.parametrize("task", VIEWS)
@given(name=names, size=sizes, seed=seeds)
@settings(max_examples=10)
def test_a_view_is_a_function_of_record_and_seed(
    task: str, name: str, size: tuple[int, int], seed: int
) -> None:
    assert same(VIEWS[task](photograph(name, size), seed), VIEWS[task](photograph(name, size), seed))


@given(name=names, size=sizes, seed=seeds)
@settings(max_examples=40)
def test_a_hole_is_black_in_the_source_and_nothing_else_changes(
    name: str, size: tuple[int, int], seed: int
) -> None:
    record = photograph(name, size)
    example = VIEWS["inpainting"](record, seed)
    hole = example.meta["hole"]
    assert hole.shape == size and hole.dtype == np.bool_ and 0 < hole.sum() < hole.size
    assert (example.source[hole] == 0).all()
    assert np.array_equal(example.source[~hole], record.image[~hole])
    assert np.array_equal(example.target, record.image) and example.prompt == record.caption
    if example.kind == "object":
        assert np.array_equal(hole, record.objects[0].mask)
    if example.kind == "bezier":
        x0, y0, x1, y1 = record.objects[0].box
        assert hole[y0:y1, x0:x1].any()


@given(name=names, size=sizes, seed=seeds)
@settings(max_examples=20)
def test_any_five_seeds_in_a_row_give_hole_kinds_at_exactly_20_40_40(
    name: str, size: tuple[int, int], seed: int
) -> None:
    record = photograph(name, size)
    kinds = [VIEWS["inpainting"](record, seed + turn).kind for turn in range(5)]
    assert sorted(kinds) == ["bezier", "bezier", "object", "object", "random"]


def test_records_begin_their_turns_at_different_places() -> None:
    record = photograph("coffee", SIZES[0])
    kinds = [VIEWS["inpainting"](replace(record, id=f"{number}"), 0).kind for number in range(1500)]
    shares = {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}
    # Four standard errors of a share of 0.4 among 1500 draws are 0.05.
    assert shares == pytest.approx({"random": 0.2, "object": 0.4, "bezier": 0.4}, abs=0.05)


@given(name=names, size=sizes, seed=seeds)
@settings(max_examples=30)
def test_a_random_hole_overlaps_no_object_by_more_than_the_papers_limit(
    name: str, size: tuple[int, int], seed: int
) -> None:
    record = photograph(name, size)
    made = [VIEWS["inpainting"](record, seed + turn) for turn in range(5)]
    hole = next(example.meta["hole"] for example in made if example.kind == "random")
    assert record.objects[0].mask is not None
    assert intersection_over_union(hole, record.objects[0].mask) <= MAX_OBJECT_IOU


def test_an_object_without_a_mask_is_passed_over_where_another_has_one() -> None:
    record = photograph("chelsea", SIZES[0])
    boxed = replace(record.objects[0], label="box", category="box", mask=None)
    both = replace(record, objects=(boxed, *record.objects))
    for seed in range(40):
        hole, mark = VIEWS["inpainting"](both, seed), VIEWS["grounding"](both, seed)
        assert hole.kind != "object" or np.array_equal(hole.meta["hole"], record.objects[0].mask)
        assert mark.kind != "mask" or "cat" in mark.prompt


def test_of_objects_that_share_their_name_any_instance_is_asked_for() -> None:
    record = photograph("chelsea", SIZES[0])
    twins = replace(record, objects=record.objects * 2)
    made = [VIEWS["grounding"](twins, seed) for seed in range(20)]
    assert {example.kind for example in made} == {"instance"}
    assert all("any cat" in example.prompt for example in made)
    colours = {example.prompt.split()[2] for example in (VIEWS["grounding"](twins, s) for s in range(200))}
    assert colours == set(COLOURS)


def test_a_stored_map_is_used_as_it_is() -> None:
    record = photograph("rocket", SIZES[1])
    bare = replace(record, depth=None, segmentation=None, maps={"segmentation": record.image[::-1].copy()})
    made = {example.kind: example for example in (VIEWS["control"](bare, seed) for seed in range(60))}
    assert set(made) == {"canny", "soft_edge", "lineart", "segmentation"}
    assert np.array_equal(made["segmentation"].source, record.image[::-1])


@pytest.mark.parametrize("task", VIEWS)
def test_an_example_says_where_its_picture_comes_from(task: str) -> None:
    origin = Origin("album", "v1", "mit", 640, 480, {"score": 3.0})
    assert VIEWS[task](replace(photograph("coffee", SIZES[0]), origin=origin), 0).origin == origin


@given(name=names, size=sizes, seed=seeds)
@settings(max_examples=40)
def test_grounding_marks_the_object_and_leaves_the_rest(name: str, size: tuple[int, int], seed: int) -> None:
    record = photograph(name, size)
    example = VIEWS["grounding"](record, seed)
    assert np.array_equal(example.source, record.image) and record.objects[0].label in example.prompt
    changed = (example.target != example.source).any(axis=-1)
    x0, y0, x1, y1 = record.objects[0].box
    inside = np.zeros(size, dtype=bool)
    inside[y0:y1, x0:x1] = True
    if example.kind == "mask":
        mask = record.objects[0].mask
        assert (
            mask is not None
            and not changed[~mask].any()
            and len(np.unique(example.target[mask], axis=0)) == 1
        )
    else:
        assert changed.any() and not changed[inside].any()


@given(name=names, size=sizes)
@settings(max_examples=10)
def test_control_draws_every_kind_of_map(name: str, size: tuple[int, int]) -> None:
    record = photograph(name, size)
    made = {example.kind: example for example in (VIEWS["control"](record, seed) for seed in range(60))}
    assert set(made) == {"canny", "depth", "soft_edge", "lineart", "segmentation"}
    assert all(len(np.unique(example.source)) > 1 for example in made.values())  # no map is blank
    assert all(np.array_equal(example.target, record.image) for example in made.values())
    assert all(record.caption in example.prompt for example in made.values())


@pytest.mark.parametrize("name", sorted(PHOTOGRAPHS))
@pytest.mark.parametrize("task", VIEWS)
def test_a_view_says_what_a_bare_photograph_lacks(task: str, name: str) -> None:
    described = photograph(name, SIZES[0])
    bare = Record(described.id, described.image, described.caption)
    if task == "control":  # edges need nothing but pixels
        assert {VIEWS[task](bare, seed).kind for seed in range(30)} == {"canny", "soft_edge", "lineart"}
        return
    with pytest.raises(MissingMetadataError, match=f"(?s)({task}|objects).*{name}|{name}.*(objects|pairs)"):
        VIEWS[task](bare, 0)


def test_an_object_without_a_mask_is_named_where_a_mask_is_needed() -> None:
    described = photograph("chelsea", SIZES[0])
    boxed = Record(
        described.id, described.image, "a cat", (RecordObject("cat", "cat", None, (4, 4, 20, 20)),)
    )
    for task in ("inpainting", "grounding"):
        failures = 0
        for seed in range(30):
            try:
                assert VIEWS[task](boxed, seed).kind in ("random", "bezier", "box", "instance")
            except MissingMetadataError as error:
                failures += 1
                assert "'cat'" in str(error) and "mask" in str(error)
        assert 0 < failures < 30

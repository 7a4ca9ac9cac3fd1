"""The paper's limits on views at their edges: holes that hit every object, objects that fill the picture."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.cologen.data.framing import box_around
from recipes.cologen.data.masks import (
    BEZIER_POINTS,
    MAX_OBJECT_IOU,
    bezier_mask,
    intersection_over_union,
    random_mask,
)
from recipes.cologen.data.record import MissingMetadataError, Record, RecordObject
from recipes.cologen.data.views import VIEWS

HEIGHT, WIDTH = 24, 40
seeds = st.integers(0, 2**31)


def item(mask, label="thing"):
    return RecordObject(label, label, mask, box_around(mask))


def record(*objects, number=0):
    pixels = np.random.default_rng(number).integers(1, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Record(f"r{number}", pixels, "things", tuple(objects))


def blocks():
    """Masks of blocks of random place and size, wherever they are; some fill a corner, some everything."""
    side = st.tuples(st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1))
    return st.lists(st.tuples(side, side), min_size=1, max_size=8).map(
        lambda pairs: [_block(*first, *second) for first, second in pairs]
    )


def _block(y0, x0, y1, x1):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[min(y0, y1) : max(y0, y1) + 1, min(x0, x1) : max(x0, x1) + 1] = True
    return mask


@given(blocks(), seeds)
@settings(max_examples=80, deadline=None)
def test_no_random_hole_matches_an_object_by_more_than_the_limit(masks, seed):
    hole = random_mask(np.random.default_rng(seed), HEIGHT, WIDTH, masks)
    assert 0 < hole.sum() < hole.size
    assert max(intersection_over_union(hole, mask) for mask in masks) <= MAX_OBJECT_IOU


def in_corners(rows, columns):
    """Objects that fill all four corners."""
    return [
        _block(y, x, y + rows - 1, x + columns - 1) for y in (0, HEIGHT - rows) for x in (0, WIDTH - columns)
    ]


def test_a_hole_shrinks_until_it_matches_nothing_and_is_refused_where_it_cannot(monkeypatch):
    monkeypatch.setattr("recipes.cologen.data.masks._REDRAWS", 0)
    corners = in_corners(HEIGHT // 8, WIDTH // 8)
    hole = random_mask(np.random.default_rng(0), HEIGHT, WIDTH, corners)
    assert max(intersection_over_union(hole, mask) for mask in corners) <= MAX_OBJECT_IOU
    every = [mask for size in ((3, 5), (1, 2), (1, 1)) for mask in in_corners(*size)]
    with pytest.raises(MissingMetadataError, match=r"one of 12 objects better than IoU 0\.3"):
        random_mask(np.random.default_rng(0), HEIGHT, WIDTH, every)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_an_object_that_fills_the_picture_is_no_hole(seed):
    everything = item(np.ones((HEIGHT, WIDTH), bool), "all")
    small = item(_block(5, 6, 12, 20), "block")
    example = VIEWS["inpainting"](record(everything, small), seed)
    assert 0 < example.meta["hole"].sum() < HEIGHT * WIDTH
    alone = record(everything)
    kinds = Counter()
    for turn in range(5):
        try:
            kinds[VIEWS["inpainting"](alone, seed + turn).kind] += 1
        except MissingMetadataError as error:
            kinds["refused"] += 1
            assert "would be the whole picture" in str(error)
    assert kinds == {"random": 1, "refused": 4}


@given(seeds, st.integers(0, HEIGHT - 2), st.integers(0, WIDTH - 2))
@settings(max_examples=40, deadline=None)
def test_a_bezier_hole_lies_round_its_box_and_leaves_the_far_away(seed, top, left):
    box = (left, top, min(WIDTH, left + 6), min(HEIGHT, top + 5))
    hole = bezier_mask(np.random.default_rng(seed), HEIGHT, WIDTH, box)
    assert hole[box[1] : box[3], box[0] : box[2]].any()
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    # Each side bulges half of at most 0.4 of the free space, and points are shaken by 5/256 of the side.
    shake = 1 + min(HEIGHT, WIDTH) * 5 / 256
    assert rows[0] >= box[1] - 0.2 * box[1] - shake
    assert rows[-1] <= box[3] - 1 + 0.2 * (HEIGHT - box[3]) + shake
    assert columns[0] >= box[0] - 0.2 * box[0] - shake
    assert columns[-1] <= box[2] - 1 + 0.2 * (WIDTH - box[2]) + shake
    assert BEZIER_POINTS == 20


def test_any_instance_of_a_class_may_be_boxed_though_another_thing_stands_alone():
    cups = [item(_block(2, 2 + 10 * k, 6, 8 + 10 * k), "cup") for k in range(3)]
    table = item(_block(12, 0, 20, 39), "table")
    described = record(*cups, table)
    asked = Counter()
    for seed in range(200):
        example = VIEWS["grounding"](described, seed)
        if example.kind == "instance":
            asked["cup" if "any cup" in example.prompt else "table"] += 1
        else:
            assert "the table" in example.prompt  # only what one name means is referred to
    assert asked["cup"] > asked["table"] > 0


def test_a_boxed_instance_is_one_of_those_that_are_there():
    cups = [item(_block(2, 2 + 10 * k, 6, 8 + 10 * k), "cup") for k in range(3)]
    described = replace(record(*cups), objects=tuple(cups))
    boxed = set()
    for seed in range(40):
        example = VIEWS["grounding"](described, seed)
        changed = (example.target != example.source).any(-1)
        inside = [not changed[cup.mask].any() and changed[:, cup.box[0] - 1].any() for cup in cups]
        boxed.add(inside.index(True))
    assert boxed == {0, 1, 2}

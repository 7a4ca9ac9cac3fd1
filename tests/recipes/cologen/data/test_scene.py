"""Scenes: drawing, boxes, masks and captions agree with each other."""

from itertools import combinations, product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recipes.cologen.data.oracle import read
from recipes.cologen.data.scene import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    cell_mask,
    draw,
    object_box,
    object_mask,
)
from recipes.cologen.data.vocabulary import MAX_TEXT_TOKENS, VOCABULARY


@st.composite
def scenes(draw_from: st.DrawFn) -> Scene:
    """Any scene the world can show, boxes in another colour included."""
    places = draw_from(st.lists(st.sampled_from(PLACES), unique=True, max_size=4))
    objects = []
    for place in places:
        colour = draw_from(st.sampled_from(sorted(COLOURS)))
        frames = st.none() | st.sampled_from(sorted(set(COLOURS) - {colour}))
        objects.append(
            SceneObject(
                shape=draw_from(st.sampled_from(SHAPES)),
                size=draw_from(st.sampled_from(sorted(SIZES))),
                colour=colour,
                place=place,
                frame=draw_from(frames),
            )
        )
    return Scene(draw_from(st.sampled_from(sorted(BACKGROUNDS))), ()).with_objects(*objects)


@given(scenes())
def test_the_oracle_reads_back_every_scene_that_can_be_drawn(scene: Scene) -> None:
    assert read(draw(scene)) == scene


@given(scenes())
def test_masks_and_boxes_are_where_the_pixels_are(scene: Scene) -> None:
    image = draw(scene)
    for item in scene.objects:
        mask = object_mask(item)
        assert (image[mask] == COLOURS[item.colour]).all()
        rows, columns = np.nonzero(mask)
        assert object_box(item) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@given(scenes())
def test_captions_use_the_closed_vocabulary(scene: Scene) -> None:
    assert set(scene.caption.split()) <= set(VOCABULARY)


def test_the_vocabulary_has_no_word_twice() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert MAX_TEXT_TOKENS > 19


def test_no_two_templates_are_closer_than_three_pixels() -> None:
    masks = [cell_mask(*show) for show in product(SHAPES, SIZES)]
    assert min(int((a ^ b).sum()) for a, b in combinations(masks, 2)) >= 3


def test_exchanging_and_removing_keep_reading_order() -> None:
    first = SceneObject("circle", "small", "red", "bottom right")
    second = SceneObject("square", "large", "blue", "top left")
    scene = Scene("gray", ()).with_objects(first, second)
    assert scene.objects == (second, first)
    assert scene.without(first).objects == (second,)
    assert scene.free_places() == ["top right", "bottom left"]
    moved = scene.exchanged(second, SceneObject("square", "large", "blue", "bottom left"))
    assert [item.place for item in moved.objects] == ["bottom left", "bottom right"]

"""The oracle: forgives two pixels of a quadrant, nothing else, and knows which freedom each task leaves."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.cologen.data import oracle
from recipes.cologen.data.record import Example
from recipes.cologen.data.scene import COLOURS, Scene, SceneObject, draw
from recipes.cologen.data.views import VIEWS
from recipes.cologen.data.world import World

CIRCLE = SceneObject("circle", "large", "red", "top left")
SCENE = Scene("gray", (CIRCLE,))


def example(task: str, scene: Scene, **meta: object) -> Example:
    image = draw(scene)
    return Example("x", task, "any", image, image, "", {"scene": scene, **meta})


@given(st.integers(0, 1000), st.integers(0, 2**32))
def test_reading_survives_small_noise(index: int, seed: int) -> None:
    record = World(4).record(index)
    noise = np.random.default_rng(seed).integers(-8, 9, size=record.image.shape)
    noisy = (record.image.astype(int) + noise).clip(0, 255).astype(np.uint8)
    assert oracle.read(noisy) == record.scene


@pytest.mark.parametrize(("wrong", "read"), [(1, True), (2, True), (5, False)])
def test_a_quadrant_may_have_two_wrong_pixels(wrong: int, read: bool) -> None:
    image = draw(SCENE)
    image[15, 15 - wrong : 15] = COLOURS["blue"]
    assert (oracle.read(image) is not None) is read


@pytest.mark.parametrize(
    "change",
    [{"shape": "square"}, {"size": "small"}, {"colour": "blue"}, {"place": "top right"}, {"frame": "green"}],
)
def test_any_wrong_attribute_fails(change: dict[str, str]) -> None:
    image = draw(Scene("gray", (replace(CIRCLE, **change),)))
    for task in ("grounding", "control", "customization", "editing"):
        assert not oracle.score(example(task, SCENE), image)


def test_a_wrong_background_fails() -> None:
    assert not oracle.score(example("editing", SCENE), draw(replace(SCENE, background="navy")))


@pytest.mark.parametrize(("prompt", "right"), [("red circle top left on gray", True), (None, False)])
def test_a_caption_counts_the_sizes_it_gives(prompt: str | None, right: bool) -> None:
    small = draw(Scene("gray", (replace(CIRCLE, size="small"),)))
    asked = replace(example("text-to-image", SCENE), prompt=prompt or SCENE.described([True]))
    assert oracle.shows_caption(draw(SCENE), asked)
    assert oracle.shows_caption(small, asked) is right


@pytest.mark.parametrize("change", [{"shape": "square"}, {"colour": "blue"}, {"place": "top right"}])
def test_a_caption_counts_everything_else(change: dict[str, str]) -> None:
    asked = replace(example("text-to-image", SCENE), prompt=SCENE.caption)
    assert not oracle.shows_caption(draw(Scene("gray", (replace(CIRCLE, **change),))), asked)


def test_inpainting_keeps_what_was_not_masked() -> None:
    hole = np.zeros((16, 16), dtype=bool)
    hole[:8, :8] = True
    smaller = draw(Scene("gray", (replace(CIRCLE, size="small"),)))
    assert oracle.score(example("inpainting", SCENE, hole=hole), smaller)
    assert not oracle.score(example("inpainting", SCENE, hole=np.zeros_like(hole)), smaller)


def test_any_instance_may_be_boxed_but_only_one() -> None:
    other = SceneObject("circle", "small", "blue", "bottom right")
    boxed = [
        Scene("gray", (replace(CIRCLE, frame="green"), other)),
        Scene("gray", (CIRCLE, replace(other, frame="green"))),
    ]
    both = Scene("gray", (replace(CIRCLE, frame="green"), replace(other, frame="green")))
    asked = example("grounding", boxed[0], alternatives=(boxed[1],))
    assert oracle.score(asked, draw(boxed[0]))
    assert oracle.score(asked, draw(boxed[1]))
    assert not oracle.score(asked, draw(both))


def test_noise_is_unreadable() -> None:
    noise = np.random.default_rng(0).integers(0, 256, size=(16, 16, 3)).astype(np.uint8)
    assert oracle.read(noise) is None


def test_only_pictures_of_the_world_can_be_scored() -> None:
    asked = VIEWS["editing"](World(0).record(0), 0)
    with pytest.raises(ValueError, match="has no scene"):
        oracle.score(replace(asked, meta={}), asked.target)

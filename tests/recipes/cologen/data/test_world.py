"""The world: deterministic by seed and index, exact in everything it says about a picture."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.cologen.data.oracle import read
from recipes.cologen.data.scene import SHAPES, Scene
from recipes.cologen.data.views import VIEWS
from recipes.cologen.data.world import World, is_held_out

indices = st.integers(0, 10_000)


@given(st.integers(0, 2**40), indices)
def test_a_record_is_a_function_of_seed_and_index(seed: int, index: int) -> None:
    first, second = World(seed).record(index), World(seed).record(index)
    assert first.id == second.id
    assert first.scene == second.scene
    assert np.array_equal(first.image, second.image)
    assert first.depth is not None
    assert second.depth is not None
    assert np.array_equal(first.depth, second.depth)


@given(indices)
def test_the_oracle_reads_every_record(index: int) -> None:
    record = World(3).record(index)
    assert record.scene is not None
    assert read(record.image) == record.scene
    assert record.caption == record.scene.caption


@given(indices)
def test_objects_depth_and_classes_tell_the_same_story(index: int) -> None:
    record = World(5).record(index)
    assert record.depth is not None
    assert record.segmentation is not None
    covered = np.zeros(record.image.shape[:2], dtype=bool)
    for item in record.objects:
        assert item.mask is not None
        assert len(np.unique(record.depth[item.mask])) == 1
        assert set(record.segmentation[item.mask]) == {1 + SHAPES.index(item.category)}
        covered |= item.mask
    assert (record.segmentation[~covered] == 0).all()
    assert record.depth[~covered].max(initial=0) < min(record.depth[covered])


def test_two_objects_have_two_depths() -> None:
    for record, _ in zip(World(0).records(), range(50), strict=False):
        depths = {float(record.depth[item.mask][0]) for item in record.objects}
        assert len(depths) == len(record.objects)


def test_seeds_and_indices_give_different_scenes() -> None:
    scenes = [World(seed).record(index).scene for seed in range(3) for index in range(100)]
    assert len(set(scenes)) > 270


def test_the_stream_starts_where_asked() -> None:
    assert next(World(1).records(start=7)).id == World(1).record(7).id


def test_a_negative_index_is_refused() -> None:
    with pytest.raises(ValueError, match="got -1"):
        World(0).record(-1)


def _seen(scene: Scene) -> set[Scene]:
    """A scene, and each of its objects alone on its background."""
    return {scene, *(Scene(scene.background, (item,)) for item in scene.objects)}


@given(indices, indices)
def test_no_picture_is_on_both_sides(index: int, other: int) -> None:
    trained, held_out = World(0).record(index).scene, World(0, held_out=True).record(other).scene
    assert trained is not None
    assert held_out is not None
    assert not any(is_held_out(trained.background, item) for item in trained.objects)
    assert all(is_held_out(held_out.background, item) for item in held_out.objects)
    assert not _seen(trained) & _seen(held_out)


@pytest.mark.parametrize("task", sorted(VIEWS))
def test_no_held_out_example_was_trained_on(task: str) -> None:
    def examples(world: World, count: int) -> set[tuple[str, bytes, bytes]]:
        made = (VIEWS[task](world.record(index), index) for index in range(count))
        return {(one.prompt, one.source.tobytes(), one.target.tobytes()) for one in made}

    assert not examples(World(0), 2_000) & examples(World(0, held_out=True), 100)


def test_both_sides_have_as_many_scenes_of_two_objects() -> None:
    for held_out in (False, True):
        scenes = [World(1, held_out=held_out).record(index).scene for index in range(300)]
        share = sum(len(scene.objects) == 2 for scene in scenes if scene) / len(scenes)
        assert 0.6 < share < 0.8
